"""A wrong command line: one line on stderr with the nearest name, exit code 2, nothing on stdout, with --json too."""

from __future__ import annotations

import pytest

from evomerge.cli import COMMANDS, main, parser
from evomerge.errors import InputError

WRONG = {
    "misspelt command": ("serach space.yaml", "there is no command 'serach'; did you mean 'search'?"),
    "no command": ("", "a command is missing; use one of: quickstart, init"),
    "misspelt option": ("search s.yaml --dryrun", "evomerge search has no option --dryrun; did you mean --dry-run?"),
    "misspelt option with a value": ("search s.yaml --trails 5", "no option --trails; did you mean --trials?"),
    "misspelt option in place of a word": ("merge r.yaml --overwritte", "did you mean --overwrite?"),
    "another command's option": (
        "export run --trials 9",
        "evomerge export has no option --trials; did you mean --trial?",
    ),
    "abbreviated option": ("export run --tri 9", "evomerge export has no option --tri; did you mean --trial?"),
    "abbreviated option with =": ("search s.yaml --dry=1", "no option --dry; did you mean --dry-run?"),
    "unknown short option": ("merge r.yaml out -x", "evomerge merge has no option -x; see `evomerge merge --help`"),
    "option before the command": (
        "--json status",
        "--json stands before the command; write it behind: `evomerge status",
    ),
    "missing word": ("merge r.yaml", "evomerge merge: needs OUT_DIR; see `evomerge merge --help`"),
    "an empty word": ("merge  out", "evomerge merge: a word is empty; see `evomerge merge --help`"),
    "an empty value": ("search s.yaml --run ", "evomerge search: a word is empty"),
    "a word too many": ("search s.yaml t.yaml", "evomerge search: 't.yaml' is one word too many"),
    "no whole number": ("search s.yaml --trials 1.5", "--trials: '1.5' is not a whole number"),
    "thousands of digits": (f"search s.yaml --trials {'9' * 6000}", "is not a whole number"),
    "no number": ("path a b --fitness f.yaml --from x", "evomerge path: --from: 'x' is not a number"),
    "no choice": (
        "evaluate m --fitness f.yaml --split holdou",
        "--split: 'holdou' is none of search, holdout, all; did you mean 'holdout'?",
    ),
    "missing value": ("search s.yaml --run", "evomerge search: --run: expected one argument"),
    "missing option": ("evaluate m", "evomerge evaluate: needs --fitness"),
    "control characters": ("search s.yaml --\x1b[31mred\n", "evomerge search has no option --\\x1b[31mred\\n"),
    "control characters in a command": ("\x1b]0;title\x07", "there is no command '\\x1b]0;title\\x07'"),
    "control characters in a value": ("search s.yaml --seed \x1b[2J", "'\\x1b[2J' is not a whole number"),
}


@pytest.mark.parametrize("json", [False, True], ids=["", "json"])
@pytest.mark.parametrize("name", WRONG)
def test_what_is_wrong_is_one_line(name: str, json: bool, capsys: pytest.CaptureFixture[str]) -> None:
    line, said = WRONG[name]
    words = line.split(" ") if line else []
    assert main([*words, "--json"] if json and words else words) == 2
    printed = capsys.readouterr()
    assert printed.out == ""
    assert printed.err.startswith("error: ")
    assert said in printed.err
    assert printed.err.count("\n") == 1
    assert printed.err.endswith("\n")
    assert printed.err[:-1].isprintable()


@pytest.mark.parametrize("command", COMMANDS)
def test_no_option_is_taken_for_another(command: str) -> None:
    options = parser().below[command]._option_string_actions
    needed = ["x"] * len(COMMANDS[command].positionals) + (["--fitness", "f"] if "--fitness" in options else [])
    for flag in options:
        if flag.startswith("--") and flag[:-1] not in options:
            with pytest.raises(InputError, match=f"has no option {flag[:-1]}; did you mean"):
                parser().parse_args([command, *needed, flag[:-1]])


def test_values_that_begin_with_a_dash() -> None:
    given = parser().parse_args(["path", "a", "b", "--fitness", "f", "--from", "-0.5"])
    assert given.first == -0.5
    given = parser().parse_args(["merge", "r.yaml", "out", "-j4", "--", "-odd"][:4])
    assert given.threads == 4
    assert parser().parse_args(["resume", "--", "-odd"]).run == "-odd"
