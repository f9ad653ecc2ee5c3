"""`python -m smoljax` is the `smoljax` command."""

from smoljax.cli.main import main

if __name__ == "__main__":
    main()
