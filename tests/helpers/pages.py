"""A headless Chromium, and what every page is asked in it: does anything stick out, meet, or stand out too little?

It takes a Chromium on this machine (Debian: apt install chromium), or the one that CHROMIUM names, and playwright.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

CHROMIUM = os.environ.get("CHROMIUM") or shutil.which("chromium") or shutil.which("chromium-browser")
FLAGS = ("--no-sandbox", "--disable-gpu", "--disable-background-networking", "--disable-component-update")
SIZES = {"desktop": {"width": 1280, "height": 800}, "phone": {"width": 390, "height": 844}}


@contextmanager
def chromium() -> Iterator[Any]:
    from playwright.sync_api import sync_playwright

    with sync_playwright() as running:
        browser = running.chromium.launch(executable_path=CHROMIUM, args=list(FLAGS))
        yield browser
        browser.close()


# Visible controls that stick out, are cut or lie on one another; what the footer covers can be scrolled from under it.
OVERLAPS = """(kinds) => {
  const shown = [...document.querySelectorAll(kinds)]
    .filter(e => e.checkVisibility());
  const footer = document.querySelector('footer');
  const free = shown.filter(e => !footer || footer.contains(e) ||
    e.getBoundingClientRect().bottom < footer.getBoundingClientRect().top);
  const faults = [];
  const meet = (p, q) => p.left < q.right - 1 && q.left < p.right - 1 && p.top < q.bottom - 1 && q.top < p.bottom - 1;
  free.forEach((a, i) => {
    const box = a.getBoundingClientRect(), name = a.id || a.textContent.trim();
    if (box.right > innerWidth + .5 || box.left < -.5) faults.push(name + ' sticks out');
    if (a.tagName === 'BUTTON' && a.scrollWidth > a.clientWidth + 1) faults.push(name + ' is cut');
    for (const b of free.slice(i + 1)) if (meet(box, b.getBoundingClientRect())) faults.push(name + ' / ' + b.id);
  });
  return faults;
}"""
# Texts whose colour stands out from the nearest painted ground by less than 4.5 : 1; disabled controls are exempt.
CONTRAST = """() => {
  const canvas = new OffscreenCanvas(1, 1).getContext('2d', {willReadFrequently: true});
  const parse = (colour) => {
    canvas.clearRect(0, 0, 1, 1); canvas.fillStyle = colour; canvas.fillRect(0, 0, 1, 1);
    const [r, g, b, a] = canvas.getImageData(0, 0, 1, 1).data; return [r, g, b, a / 255];
  };
  const over = (top, below) => [0, 1, 2].map(i => top[i] * top[3] + below[i] * (1 - top[3])).concat(1);
  const ground = (e) => {
    const layers = [];
    for (let at = e; at; at = at.parentElement) {
      const colour = parse(getComputedStyle(at).backgroundColor);
      if (colour[3] > 0) layers.push(colour);
      if (colour[3] === 1) break;
    }
    return layers.reduceRight((below, top) => over(top, below), [255, 255, 255, 1]);
  };
  const light = (c) => c.slice(0, 3).map(v => v / 255).map(v => v <= .04045 ? v / 12.92 : ((v + .055) / 1.055) ** 2.4)
    .reduce((sum, v, i) => sum + v * [.2126, .7152, .0722][i], 0);
  const faults = [];
  for (const e of document.querySelectorAll('body *')) {
    const own = [...e.childNodes].some(n => n.nodeType === 3 && n.textContent.trim());
    if (!own || !e.checkVisibility() || e.closest(':disabled, script, style, option, title')) continue;
    const back = ground(e), style = getComputedStyle(e);
    const front = over(parse(e instanceof SVGElement ? style.fill : style.color), back);
    const [a, b] = [light(front), light(back)].sort((x, y) => y - x);
    const ratio = (a + .05) / (b + .05);
    if (ratio < 4.5) faults.push(`${e.tagName} ${e.id} ${e.className} ${ratio.toFixed(2)}`);
  }
  return faults;
}"""
# Pieces of text that lie on one another, and those beyond the page's sides that no box lets one scroll to.
COLLISIONS = """() => {
  const pieces = [], faults = [];
  const seen = (box, frame) => frame ? {
    left: Math.max(box.left, frame.left), right: Math.min(box.right, frame.right),
    top: Math.max(box.top, frame.top), bottom: Math.min(box.bottom, frame.bottom),
  } : box;
  const walker = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
  while (walker.nextNode()) {
    const node = walker.currentNode, e = node.parentElement;
    if (!node.textContent.trim() || !e.checkVisibility() || e.closest('script, style')) continue;
    const range = document.createRange();
    range.selectNodeContents(node);
    const boxes = e instanceof SVGElement ? [e.getBoundingClientRect()] : range.getClientRects();
    const window = e.closest('.scroll')?.getBoundingClientRect();
    for (const whole of boxes) {
      const box = seen(whole, window);
      if (box.right <= box.left || box.bottom <= box.top || e.closest('.cards li:nth-child(n + 4)')) continue;
      pieces.push([box, node.textContent.trim().slice(0, 40)]);
      const isOut = box.right > innerWidth + .5 || box.left < -.5;
      if (isOut && !e.closest('.scroll')) faults.push(pieces.at(-1)[1] + ' sticks out');
    }
  }
  const meet = (p, q) => p.left < q.right - 2 && q.left < p.right - 2 && p.top < q.bottom - 4 && q.top < p.bottom - 4;
  pieces.forEach(([box, text], i) => {
    for (const [other, words] of pieces.slice(i + 1)) if (meet(box, other)) faults.push(text + ' / ' + words);
  });
  return faults;
}"""
