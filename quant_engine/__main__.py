"""`python -m quant_engine`: the engine from the command line."""

from quant_engine.failures import exits_plainly

if __name__ == "__main__":
    with exits_plainly("command", "give the command again"):  # loading can be stopped, or fail, too
        from quant_engine.cli import main

        main()
