"""`python -m minipovid`, and `accelerate launch -m minipovid train RECIPE` for several processes."""

from minipovid.cli import main

main()
