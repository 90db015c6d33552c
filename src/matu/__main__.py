from matu.cli import main

main()
