"""`python -m autoq` is the `autoq` command."""

from autoq.cli.main import main

if __name__ == "__main__":
    main()
