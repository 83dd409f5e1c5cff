"""The command as a process: help is quick and loads no torch, versions, unknown options, broken pipes."""

import signal
import subprocess
import sys
import time

import pytest

import instructblip_hf


COMMAND = [sys.executable, "-m", "instructblip_hf.cli"]


def test_help_is_quick_and_names_the_commands():
    seconds = []
    for _ in range(3):
        started = time.perf_counter()
        done = subprocess.run([*COMMAND, "--help"], capture_output=True, text=True, check=False)
        seconds.append(time.perf_counter() - started)
        assert done.returncode == 0
    for command in ("demo", "ask", "caption", "train"):
        assert command in done.stdout
    # The best of three, as the machine may be busy with other tests.
    assert min(seconds) < 1.5


@pytest.mark.parametrize("arguments", [["--help"], ["demo", "--help"], ["ask", "--help"], ["train", "--list"]])
def test_help_loads_no_torch(arguments):
    code = (
        "import sys\nfrom instructblip_hf.cli import main\n"
        f"sys.argv = ['instructblip', *{arguments!r}]\n"
        "try:\n    main()\nexcept SystemExit as leave:\n    code = leave.code\n"
        "sys.exit('torch' if 'torch' in sys.modules else code)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_version(run):
    result = run("--version")
    assert result.exit_code == 0
    assert result.output.strip() == f"instructblip_hf {instructblip_hf.__version__}"


@pytest.mark.parametrize(
    "arguments", [["nonsense"], ["ask"], ["demo", "--no-such-option"], ["ask", "a.png", "--num-beams", "0"]]
)
def test_wrong_usage_exits_with_2(run, arguments):
    result = run(*arguments)
    assert result.exit_code == 2
    assert "Traceback" not in result.output


def test_a_reader_that_leaves_early_is_no_crash(checkpoint, images):
    ask = [*COMMAND, "ask", "a.png", "-m", checkpoint, "--max-new-tokens", "1"]
    questions = [part for number in range(40) for part in ("-q", f"question {number}")]
    asking = subprocess.Popen([*ask, *questions], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    asking.stdout.readline()
    asking.stdout.close()
    errors = asking.stderr.read()
    asking.wait(timeout=60)
    assert "Traceback" not in errors
    assert "BrokenPipe" not in errors


def test_interrupting_is_no_crash(checkpoint, images):
    asking = subprocess.Popen(
        [*COMMAND, "ask", "a.png", "-m", checkpoint, "--max-new-tokens", "1"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        # Jobs in the background of a shell inherit an interrupt that is ignored.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )
    asking.stdin.write("what ?\n")
    asking.stdin.flush()
    asking.stdout.readline()  # the answer is out: now it waits for the next question
    asking.send_signal(signal.SIGINT)
    _, errors = asking.communicate(timeout=60)
    assert asking.returncode == 130
    assert "Traceback" not in errors
