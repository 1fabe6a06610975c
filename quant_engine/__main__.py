"""`python -m quant_engine`: the engine from the command line."""

from quant_engine.cli import main

if __name__ == "__main__":
    main()
