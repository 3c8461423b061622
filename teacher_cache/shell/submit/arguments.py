"""The arguments of `submit`, apart from what it works with, so that no help waits for that."""

import argparse


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("config", metavar="CONFIG", help="YAML file, as for this machine")
    parser.add_argument("overrides", nargs="*", metavar="KEY=VALUE", help="for example execution.num_workers=8")
    parser.add_argument("--cluster", metavar="FILE", help="YAML file with address, code, requirements, env")
    parser.add_argument("--address", metavar="URL", help="of the job server; instead of the one in FILE")
    parser.add_argument("--no-wait", action="store_true", help="end at once, and not with the job")
    parser.add_argument("--again", action="store_true", help="submit also what has succeeded before")
    parser.add_argument("--stop", action="store_true", help="stop the job that is at work on this configuration")
