"""What the launcher of the Flex Template runs."""

from vidpress.pipeline.encode import main

if __name__ == "__main__":
    main()
