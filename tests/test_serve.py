"""The verb: one line when it is ready, an end after SIGTERM that loses nothing, clear mistakes."""

import json
import signal
import socket
import sys
import threading
from pathlib import Path

import httpx2 as httpx
import pytest
from served import served

from gptjax.base.errors import ConfigError, UserError
from gptjax.serve import serve
from gptjax.serving.listening import bind
from gptjax.serving.options import KEY_VARIABLE, ServeCommand, api_key, check_lengths


def ask(url: str, **body) -> httpx.Response:
    return httpx.post(f"{url}/v1/completions", json=body, timeout=60)


@pytest.mark.slow
def test_sigterm_finishes_what_was_accepted_and_exits_0(trained_run, tmp_path):
    with served(trained_run, "--max-batch", 2, GPTJAX_API_KEY="k") as server:
        assert server.line.startswith("serving run at http://127.0.0.1:")
        assert server.line.endswith("(max batch 2, context 256)\n")
        headers = {"authorization": "Bearer k"}
        body = {"prompt": "a", "max_tokens": 200, "stream": True, "seed": 1}
        url = f"{server.url}/v1/completions"
        with httpx.stream("POST", url, json=body, headers=headers, timeout=60) as response:
            lines = response.iter_lines()
            assert next(lines).startswith("data: {")
            server.process.send_signal(signal.SIGTERM)
            rest = [line for line in lines if line]
        assert rest[-1] == "data: [DONE]"
        assert json.loads(rest[-2][6:])["choices"][0]["finish_reason"] in ("length", "stop")
        assert server.process.wait(30) == 0
        with pytest.raises(httpx.ConnectError):
            httpx.get(f"{server.url}/health")
        assert server.process.stdout.read() == ""
        assert "SIGTERM: finishing" in server.process.stderr.read()


@pytest.mark.slow
@pytest.mark.parametrize(("grace", "code"), [("0.1", 0), ("100", 128 + signal.SIGTERM)])
def test_the_end_of_grace_or_a_second_signal_ends_what_runs(trained_run, grace, code):
    with served(trained_run, "--grace", grace, "--max-queue", 100) as server:
        answers: list[int | type] = []

        def ask_for_much():
            try:
                body = {"prompt": ["a", "b"], "max_tokens": 255, "n": 50, "logprobs": 5}
                answers.append(ask(server.url, **body).status_code)
            except httpx.HTTPError as error:
                answers.append(type(error))

        asking = threading.Thread(target=ask_for_much)
        asking.start()
        full = 'gptjax_running_sequences{model="run"} 8.0'
        while full not in httpx.get(f"{server.url}/metrics").text:
            pass
        server.process.send_signal(signal.SIGTERM)
        if code:
            assert server.process.stderr
            while "finishing" not in server.process.stderr.readline():
                pass
            assert httpx.get(f"{server.url}/health").status_code == 503
            assert ask(server.url, prompt="a").json()["error"]["code"] == "shutting_down"
            server.process.send_signal(signal.SIGTERM)
        assert server.process.wait(20) == code
        asking.join()
        assert answers == ([httpx.RemoteProtocolError] if code else [503])


@pytest.mark.parametrize("name", ["starlette", "uvicorn", "prometheus_client"])
def test_a_missing_library_is_told_before_a_model_is_looked_for(monkeypatch, name):
    monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(UserError, match=f"serving needs {name}"):
        serve(["--run", "no such run"])


def test_wrong_flags_are_listed_together(monkeypatch):
    flags = "--max-batch 0 --max-queue -1 --port 70000 --request-timeout 0 --grace -1 --api-key"
    with pytest.raises(ConfigError) as caught:
        serve([*flags.split(), "two words"])
    assert len(caught.value.problems) == 6
    with pytest.raises(ConfigError, match="--context must be at most 64"):
        check_lengths(ServeCommand(context=65), 64)
    with pytest.raises(ConfigError, match="--max-tokens must be at most 32"):
        check_lengths(ServeCommand(context=32, max_tokens=33), 64)


def test_the_key_of_the_flag_goes_before_that_of_the_environment(monkeypatch):
    monkeypatch.setenv(KEY_VARIABLE, "from outside")
    assert api_key(ServeCommand()) == "from outside"
    assert api_key(ServeCommand(api_key="given")) == "given"
    monkeypatch.setenv(KEY_VARIABLE, "")
    with pytest.raises(ConfigError, match=KEY_VARIABLE):
        serve([])


def test_an_address_that_cannot_be_had_is_one_message(tmp_path):
    taken = socket.create_server(("127.0.0.1", 0))
    with taken, pytest.raises(UserError, match="is in use: give another --port"):
        bind("127.0.0.1", taken.getsockname()[1], None)
    with pytest.raises(UserError, match="no address of this machine"):
        bind("192.0.2.1", 0, "key")  # of no machine: RFC 5737
    with pytest.raises(UserError, match="no address of this machine"):
        bind("no such host", 0, "key")


def test_other_machines_may_ask_only_with_a_key():
    for host in ("0.0.0.0", "::"):
        with pytest.raises(ConfigError, match="give --api-key"):
            bind(host, 0, None)
    with bind("0.0.0.0", 0, "key"):
        pass
    with bind("localhost", 0, None) as bound:
        assert bound.getsockname()[0] in ("127.0.0.1", "::1")


def test_a_run_that_is_not_there_is_told_before_anything_is_loaded(tmp_path: Path):
    with pytest.raises(UserError, match="there is no model"):
        serve(["--run", str(tmp_path / "nothing"), "--port", "0"])
