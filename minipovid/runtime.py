"""llama.cpp answers: a GGUF pair, a picture, a prompt. Needs neither torch nor transformers.

    with Runtime.open(Path("runs/my-run")) as runtime:
        print(runtime.answer(Path("photo.jpg"), "What is in the picture?"))

Prompt and picture are prepared here as in training and handed to llama.cpp as tokens and pixels; its own chat handlers
render another prompt. Several prompts about one picture encode it once.
"""

from __future__ import annotations

import ctypes
import hashlib
import os
from collections import deque
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from types import ModuleType, TracebackType
from typing import Any, cast

import numpy as np
import numpy.typing as npt
from PIL.Image import Image

from minipovid import images, shelf
from minipovid.class_token import ClassToken
from minipovid.errors import MinipovidError
from minipovid.images import ImageTransform
from minipovid.layout import GgufFamily

Floats = npt.NDArray[np.float32]
SMALL = 64 * 2**20  # bytes of a model that one thread computes faster than several can agree on
F32, NO_FLASH_ATTENTION = 0, 0  # values of ggml_type and llama_flash_attn_type


class Runtime:
    """A language model and its vision side in llama.cpp, with one conversation's worth of memory.

    The memory (KV cache) keeps the prompt's beginning and the picture; each new prompt replaces only what follows.
    """

    family: GgufFamily
    transform: ImageTransform
    n_ctx: int
    n_vocab: int
    n_embd: int

    def __init__(
        self,
        model_gguf: Path,
        mmproj_gguf: Path,
        *,
        n_ctx: int = 2048,
        n_gpu_layers: int = 0,
        kv_f32: bool = False,
        n_threads: int | None = None,
    ) -> None:
        """Load both files; `n_gpu_layers` -1 puts all of the model on a GPU, `kv_f32` keeps the memory in float32.

        Raises MinipovidError where a file is missing, is not minipovid's, or cannot be loaded.
        """
        self._model: Any = None
        self._context: Any = None
        self._mtmd: Any = None
        self._llama, self._mtmd_cpp = _libraries()
        for path in (model_gguf, mmproj_gguf):
            if not path.is_file():
                raise MinipovidError(f"There is no file {path}; `minipovid export` writes the GGUF pair of a run.")
        self.path = model_gguf
        try:
            self._load_model(model_gguf, n_gpu_layers)
            self._open_context(n_ctx, n_gpu_layers, kv_f32, n_threads)
            self._open_vision(mmproj_gguf, n_gpu_layers)
        except BaseException:
            self.close()
            raise
        self._before: list[int] = []  # tokens in front of the picture that the memory holds
        self._seen: bytes | None = None  # digest of the picture that the memory holds
        self._last_file: tuple[object, npt.NDArray[np.uint8]] | None = None

    @classmethod
    def open(cls, folder: Path, quant: str | None = None, **options: Any) -> Runtime:
        """The pair in a run folder or in a folder of GGUFs; without `quant` the largest, that is the most exact file.

        Raises MinipovidError where there is none, or where the folder holds pairs of several models.
        """
        return cls(*find_pair(folder, quant), **options)

    def answer(self, image: Image | Path, prompt: str, max_tokens: int = 256) -> str:
        """The greedy answer, without surrounding spaces; it ends at end-of-sequence or after `max_tokens`."""
        return self._text(self.answer_ids(image, prompt, max_tokens)).strip()

    def answer_ids(self, image: Image | Path, prompt: str, max_tokens: int = 256) -> list[int]:
        """The tokens of the greedy answer; a final end-of-sequence is left out."""
        past, ids = self._see(image, prompt)
        self._need_room(past + len(ids), prompt)
        self._decode(ids, past, [len(ids) - 1])
        past += len(ids)
        answer: list[int] = []
        while len(answer) < max_tokens:
            best = int(self._logits(1)[0].argmax())
            if self._llama.llama_vocab_is_eog(self._vocab, best):
                break
            answer.append(best)
            if past == self.n_ctx or len(answer) == max_tokens:
                break
            self._decode([best], past, [0])
            past += 1
        return answer

    def logps(self, image: Image | Path, prompt: str, answer: str) -> list[float]:
        """Log-probability of each token of `answer`, end-of-sequence included, given picture, prompt and those before.

        Raises MinipovidError where all of it does not fit the context.
        """
        past, prompt_ids = self._see(image, prompt)
        ids = self._tokens(self._after(prompt) + self.family.answer(answer))
        self._need_room(past + len(ids), prompt)
        first = len(prompt_ids)
        if ids[:first] != prompt_ids:
            raise MinipovidError(f"The answer {answer!r} changes the tokens of the prompt before it; rephrase it.")
        self._decode(ids, past, range(first - 1, len(ids) - 1))
        logits = self._logits(len(ids) - first).astype(np.float64)
        top = logits.max(1, keepdims=True)
        log_sum = top[:, 0] + np.log(np.exp(logits - top).sum(1))
        return list((logits[np.arange(len(logits)), ids[first:]] - log_sum).tolist())

    def embed(self, image: Image | Path) -> Floats:
        """What the language model gets to see of the picture: projected features [N, H]."""
        return self._encode(self._canvas(image))

    def _encode(self, canvas: npt.NDArray[np.uint8]) -> Floats:
        with self._picture_chunk(canvas) as chunk:
            self._class_token.begin()
            if self._mtmd_cpp.mtmd_encode_chunk(self._mtmd, chunk):
                raise RuntimeError("llama.cpp could not encode the picture")
            rows = self._mtmd_cpp.mtmd_input_chunk_get_n_tokens(chunk)
            output = self._mtmd_cpp.mtmd_get_output_embd(self._mtmd)
            return np.array(self._view(output, rows, self.n_embd))

    @property
    def class_token_moved(self) -> bool:
        """Did the last picture need the class-token remedy? False for a llama.cpp that has mended it."""
        return self._class_token.moved

    def close(self) -> None:
        """Free everything; the object answers no more. May be called twice."""
        if self._mtmd is not None:
            self._mtmd_cpp.mtmd_free(self._mtmd)
        if self._context is not None:
            for batch in (self._token_batch, self._picture_batch):
                self._llama.llama_batch_free(batch)
            self._llama.llama_free(self._context)
        if self._model is not None:
            self._llama.llama_model_free(self._model)
        self._mtmd = self._context = self._model = None

    def __enter__(self) -> Runtime:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    # --- loading ---

    def _load_model(self, path: Path, n_gpu_layers: int) -> None:
        parameters = self._llama.llama_model_default_params()
        parameters.n_gpu_layers = n_gpu_layers
        _last_errors.clear()
        self._model = self._llama.llama_model_load_from_file(os.fsencode(path), parameters)
        if self._model is None:
            raise MinipovidError(f"llama.cpp cannot load {path}{_reason()}; export it again, or take a smaller quant.")
        self._vocab = self._llama.llama_model_get_vocab(self._model)
        self.n_vocab = self._llama.llama_vocab_n_tokens(self._vocab)
        self.n_embd = self._llama.llama_model_n_embd(self._model)
        family = self._metadata("minipovid.family")
        if family is None:
            raise MinipovidError(f"{path} was not written by `minipovid export`; its prompt format is unknown.")
        self.family = cast(GgufFamily, shelf.load("families", family))
        self._first = self._metadata("minipovid.first") or ""

    def _metadata(self, key: str) -> str | None:
        buffer = ctypes.create_string_buffer(256)
        length = self._llama.llama_model_meta_val_str(self._model, key.encode(), buffer, len(buffer))
        return buffer.value.decode() if length >= 0 else None

    def _open_context(self, n_ctx: int, n_gpu_layers: int, kv_f32: bool, n_threads: int | None) -> None:
        is_small = self._llama.llama_model_size(self._model) < SMALL
        self._threads = n_threads or (1 if is_small else _cores())
        parameters = self._llama.llama_context_default_params()
        parameters.n_ctx = parameters.n_batch = n_ctx
        parameters.n_threads = parameters.n_threads_batch = self._threads
        if n_gpu_layers == 0:
            parameters.flash_attn_type = NO_FLASH_ATTENTION
        if kv_f32:
            parameters.type_k = parameters.type_v = F32
        self._context = self._llama.llama_init_from_model(self._model, parameters)
        if self._context is None:
            raise MinipovidError(
                f"llama.cpp cannot hold {n_ctx} tokens of context{_reason()}; ask for a smaller n_ctx."
            )
        self.n_ctx = n_ctx
        self._memory = self._llama.llama_get_memory(self._context)
        self._token_batch = self._llama.llama_batch_init(n_ctx, 0, 1)
        self._picture_batch = self._llama.llama_batch_init(n_ctx, self.n_embd, 1)
        for batch in (self._token_batch, self._picture_batch):
            for index in range(n_ctx):
                batch.n_seq_id[index], batch.seq_id[index][0], batch.logits[index] = 1, 0, 0
        batch = self._token_batch
        self._slots = [np.ctypeslib.as_array(array, (n_ctx,)) for array in (batch.token, batch.pos, batch.logits)]

    def _open_vision(self, path: Path, n_gpu_layers: int) -> None:
        header = _header(path)
        self.transform = ImageTransform(
            size=header["clip.vision.image_size"],
            mean=tuple(header["clip.vision.image_mean"]),
            std=tuple(header["clip.vision.image_std"]),
        )
        self._class_token = ClassToken(_ggml_base())
        parameters = self._mtmd_cpp.mtmd_context_params_default()
        parameters.use_gpu = n_gpu_layers != 0
        parameters.print_timings = parameters.warmup = False
        parameters.n_threads = self._threads
        if header.get("clip.projector_type") == "mlp":  # other projectors want the class token last
            parameters.cb_eval = self._class_token.callback
        _last_errors.clear()
        self._mtmd = self._mtmd_cpp.mtmd_init_from_file(os.fsencode(path), self._model, parameters)
        if self._mtmd is None:
            raise MinipovidError(f"llama.cpp cannot load {path} beside {self.path.name}{_reason()}; export both again.")

    # --- the picture ---

    def _see(self, image: Image | Path, prompt: str) -> tuple[int, list[int]]:
        """Bring the picture into memory; (tokens in memory, tokens of the prompt that follow it)."""
        before = self._tokens(self._first + self._parts(prompt)[0], begin=True)
        canvas = self._canvas(image)
        digest = hashlib.sha256(canvas.tobytes()).digest()
        if before != self._before or digest != self._seen:
            features = self._encode(canvas)
            self._need_room(len(before) + len(features), prompt)
            self._seen = None
            if before != self._before:
                self._before = []
                self._decode(before, 0, [])
                self._before = before
            self._decode_picture(features, len(before))
            self._seen, self._picture_rows = digest, len(features)
        return len(before) + self._picture_rows, self._tokens(self._after(prompt))

    def _parts(self, prompt: str) -> tuple[str, str]:
        """The prompt's text before and after the picture."""
        before, *after = self.family.prompt(prompt).split(self.family.IMAGE)
        if len(after) != 1:
            raise MinipovidError(f"The prompt {prompt!r} holds the placeholder {self.family.IMAGE}; leave it out.")
        return before, after[0]

    def _after(self, prompt: str) -> str:
        return self._parts(prompt)[1]

    def _canvas(self, image: Image | Path) -> npt.NDArray[np.uint8]:
        """The picture as the model takes it, uint8 [S, S, 3]. The last file is remembered while it does not change."""
        if not isinstance(image, Path):
            return self.transform.canvas(image if image.mode == "RGB" else image.convert("RGB"))
        key = (image, image.stat().st_mtime_ns, image.stat().st_size) if image.is_file() else None
        if self._last_file is None or key is None or self._last_file[0] != key:
            self._last_file = key, self.transform.canvas(images.load(image))
        return self._last_file[1]

    @contextmanager
    def _picture_chunk(self, canvas: npt.NDArray[np.uint8]) -> Iterator[Any]:
        """mtmd's handle of a picture that already has the model's size: it is copied unchanged."""
        mtmd = self._mtmd_cpp
        pixels = np.ascontiguousarray(canvas)
        bitmap = mtmd.mtmd_bitmap_init(
            canvas.shape[1], canvas.shape[0], pixels.ctypes.data_as(ctypes.POINTER(ctypes.c_uint8))
        )
        chunks = mtmd.mtmd_input_chunks_init()
        marker = mtmd.mtmd_default_marker()
        text = mtmd.mtmd_input_text(text=marker, text_len=len(marker), add_special=False, parse_special=True)
        try:
            if mtmd.mtmd_tokenize(self._mtmd, chunks, ctypes.byref(text), (ctypes.c_void_p * 1)(bitmap), 1):
                raise RuntimeError("llama.cpp could not take the picture")
            found = [mtmd.mtmd_input_chunks_get(chunks, i) for i in range(mtmd.mtmd_input_chunks_size(chunks))]
            yield next(c for c in found if mtmd.mtmd_input_chunk_get_type(c) == mtmd.MTMD_INPUT_CHUNK_TYPE_IMAGE)
        finally:
            mtmd.mtmd_input_chunks_free(chunks)
            mtmd.mtmd_bitmap_free(bitmap)

    def _decode_picture(self, features: Floats, past: int) -> None:
        batch, rows = self._picture_batch, len(features)
        batch.n_tokens = rows
        np.ctypeslib.as_array(batch.embd, (rows, self.n_embd))[:] = features
        np.ctypeslib.as_array(batch.pos, (rows,))[:] = np.arange(past, past + rows)
        self._run(batch, past)

    # --- tokens ---

    def _tokens(self, text: str, begin: bool = False) -> list[int]:
        """Token ids; `begin` adds what the model's prompts begin with. Special tokens in the text are recognised."""
        raw = text.encode()
        room = len(raw) + 4
        buffer = (ctypes.c_int32 * room)()
        count = self._llama.llama_tokenize(self._vocab, raw, len(raw), buffer, room, begin, True)
        return buffer[:count]

    def _text(self, ids: Sequence[int]) -> str:
        """The text of an answer's tokens, special ones left out."""
        room = 64 * len(ids) + 64
        buffer = ctypes.create_string_buffer(room)
        tokens = (ctypes.c_int32 * len(ids))(*ids)
        length = self._llama.llama_detokenize(self._vocab, tokens, len(ids), buffer, room, True, False)
        if length < 0:  # a token longer than 64 bytes
            buffer = ctypes.create_string_buffer(-length)
            length = self._llama.llama_detokenize(self._vocab, tokens, len(ids), buffer, -length, True, False)
        return buffer.raw[:length].decode(errors="replace")

    def _need_room(self, tokens: int, prompt: str) -> None:
        if tokens > self.n_ctx:
            raise MinipovidError(
                f"The prompt {prompt[:40]!r} takes {tokens} tokens with its picture, more than the context of "
                f"{self.n_ctx}; shorten it or raise n_ctx."
            )

    def _decode(self, ids: Sequence[int], past: int, outputs: Sequence[int]) -> None:
        """Read tokens from position `past` on, forgetting what stood there; `outputs` are the rows that get logits."""
        batch, count = self._token_batch, len(ids)
        tokens, positions, logits = self._slots
        batch.n_tokens = count
        tokens[:count] = ids
        positions[:count] = np.arange(past, past + count)
        logits[:count] = 0
        logits[list(outputs)] = 1
        self._run(batch, past)

    def _run(self, batch: Any, past: int) -> None:
        self._llama.llama_memory_seq_rm(self._memory, 0, past, -1)
        code = self._llama.llama_decode(self._context, batch)
        if code:
            raise RuntimeError(f"llama_decode failed with code {code}{_reason()}")

    def _logits(self, rows: int) -> Floats:
        """The logits [rows, V] of the last decode; valid until the next one."""
        return self._view(self._llama.llama_get_logits(self._context), rows, self.n_vocab)

    @staticmethod
    def _view(pointer: Any, rows: int, width: int) -> Floats:
        memory: Any = (ctypes.c_float * (rows * width)).from_address(ctypes.addressof(pointer.contents))
        return np.frombuffer(memory, np.float32).reshape(rows, width)


def find_pair(folder: Path, quant: str | None = None) -> tuple[Path, Path]:
    """(text GGUF, mmproj GGUF) in RUN/gguf or in the folder itself. Raises MinipovidError, saying what is there."""
    place = folder / "gguf" if (folder / "gguf").is_dir() else folder
    texts = [path for path in sorted(place.glob("*.gguf")) if not path.name.startswith("mmproj-")]
    wanted = [path for path in texts if quant is None or _quant(path) == quant.lower()]
    if not wanted:
        there = f"only {', '.join(sorted(map(_quant, texts)))}" if texts else "no GGUF files"
        asked = f" --quant {quant}" if quant else ""
        raise MinipovidError(f"{place} holds {there}; write the files with `minipovid export {folder}{asked}`.")
    if len({_stem(path) for path in wanted}) > 1:
        raise MinipovidError(
            f"{place} holds the files of several models: {', '.join(sorted({_stem(p) for p in wanted}))}."
        )
    text = max(wanted, key=lambda path: path.stat().st_size)
    vision = sorted(place.glob(f"mmproj-{_stem(text)}-*.gguf"))
    if not vision:
        raise MinipovidError(f"{place} holds no mmproj for {text.name}; write it with `minipovid export {folder}`.")
    return text, vision[0]


def _quant(path: Path) -> str:
    return path.stem.rpartition("-")[2].lower()


def _stem(path: Path) -> str:
    return path.stem.rpartition("-")[0]


def _header(path: Path) -> dict[str, Any]:
    """The metadata of an mmproj file. Raises MinipovidError where it is none."""
    import gguf

    try:
        reader = gguf.GGUFReader(path)
    except (ValueError, IndexError):
        raise MinipovidError(f"{path} is no GGUF file, or is damaged; export it again.") from None
    header = {name: entry.contents() for name, entry in reader.fields.items()}
    if "clip.vision.image_size" not in header:
        raise MinipovidError(f"{path} is no mmproj file: it holds no vision tower.")
    return header


def _cores() -> int:
    """Cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


_last_errors: deque[str] = deque(maxlen=3)


def _reason() -> str:
    """What llama.cpp last complained of, for a sentence."""
    return f" ({' '.join(_last_errors)})" if _last_errors else ""


@cache
def _libraries() -> tuple[ModuleType, ModuleType]:
    """llama.cpp and its multimodal half, both silent. Raises MinipovidError where they are not installed."""
    try:
        from llama_cpp import llama_cpp, mtmd_cpp
    except (ImportError, FileNotFoundError, RuntimeError, OSError) as error:
        raise MinipovidError(
            f"llama-cpp-python does not load ({error}); install it with `pip install llama-cpp-python "
            "--extra-index-url https://abetlen.github.io/llama-cpp-python/whl/cpu`."
        ) from None
    llama_cpp.llama_backend_init()
    llama_cpp.llama_log_set(_silent(), ctypes.c_void_p(0))
    mtmd_cpp.mtmd_log_set(_silent(), ctypes.c_void_p(0))
    mtmd_cpp.mtmd_helper_log_set(_silent(), ctypes.c_void_p(0))
    return llama_cpp, mtmd_cpp


@cache
def _silent() -> Any:
    """A log callback that prints nothing and remembers the last errors; held for ever, since ctypes would free it."""
    from llama_cpp import llama_cpp

    def remember(level: int, text: bytes, _: object) -> None:
        if level == 4:  # GGML_LOG_LEVEL_ERROR
            _last_errors.append(text.decode(errors="replace").strip())

    return llama_cpp.llama_log_callback(remember)


@cache
def _ggml_base() -> ctypes.CDLL:
    """The library that reads and writes the numbers of a tensor, wherever it lies (libggml-base)."""
    import llama_cpp
    from llama_cpp._ctypes_extensions import load_shared_library

    override = os.environ.get("LLAMA_CPP_LIB_PATH")
    return load_shared_library("ggml-base", Path(override or Path(llama_cpp.__file__).parent / "lib"))  # type: ignore
