"""The endpoint under requests that would hold up, mislead or misuse the engine."""

from __future__ import annotations

import json
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import pytest

from rlhf_ray.config.groups.deploy import ServeConfig, ServeLimitsConfig
from rlhf_ray.serving.openai_errors import Refused
from rlhf_ray.serving.request_limits import check_size
from tests.unit.serving.endpoint import Endpoint, assert_comes_back, wait_until


class TestLimits:
    """Requests that would hold up the others; none of them reaches the engine."""

    @pytest.fixture(autouse=True)
    def nothing_is_asked(self, shared):
        before = shared.notes.read_text()
        yield
        assert shared.notes.read_text() == before

    def refused(self, shared, fields, path="/v1/chat/completions") -> str:
        body = json.dumps({"model": "m", **fields}).encode()
        status, content = shared.ask("", path=path, body=body)
        assert (status, content["error"]["type"]) == (400, "BadRequestError")
        return content["error"]["message"]

    @pytest.mark.parametrize("path", ["/tokenize", "/v1/completions"])
    def test_a_text_that_no_context_holds(self, shared, path):
        """The server tells a context of 200 tokens."""
        said = self.refused(shared, {"prompt": "x" * 3300}, path)
        assert "more than 3,200 characters" in said
        assert "serve.limits.prompt_characters" in said

    def test_token_ids(self, shared):
        assert "3,200" in self.refused(shared, {"tokens": [1] * 250}, "/detokenize")
        assert "3,200" in self.refused(shared, {"prompt": [[1] * 250]}, "/v1/completions")

    def test_a_chat(self, shared):
        chat = [{"role": "user", "content": "x" * 1500}] * 2
        assert "3,200" in self.refused(shared, {"messages": chat, "tools": [{"a": "x" * 300}]})

    @pytest.mark.parametrize("fields", [{"n": 129}, {"best_of": 129}, {"n": 10000}])
    def test_answers(self, shared, fields):
        said = self.refused(shared, {"messages": [{"role": "user", "content": "a"}], **fields})
        assert "may ask for 64: the smaller of serve.limits.answers=128" in said
        assert "serve.max_requests_under_way=64" in said

    def test_answers_to_several_prompts(self, shared):
        said = self.refused(shared, {"prompt": ["a"] * 33, "n": 2}, "/v1/completions")
        assert "66 answers (33 prompts, n=2)" in said

    def test_a_role(self, shared):
        said = self.refused(shared, {"messages": [{"role": "root", "content": "a"}]})
        assert "messages[0] has the role 'root'" in said
        assert "serve.roles" in said


def test_a_text_that_fits_is_tokenized(shared):
    assert shared.ask("", path="/tokenize", body=b'{"prompt": "%s"}' % (b"x" * 3100))[0] == 200
    assert shared.notes.read_text().splitlines()[-1] == "tokenized 3100"


@pytest.mark.unit_slow
def test_several_answers_count_as_several_requests(make_endpoint):
    endpoint = make_endpoint(max_in_flight=4).wait_until_ready()
    chat = {"messages": [{"role": "user", "content": " ".join(["slow"] * 100)}], "n": 3}
    with ThreadPoolExecutor(1) as pool:
        slow = pool.submit(endpoint.ask, "", body=json.dumps(chat).encode())
        wait_until(lambda: endpoint.fleet.in_flight == 3, 10)
        status, content = endpoint.ask("", body=json.dumps({**chat, "n": 2}).encode())
        assert status == 503
        assert "3 requests are in flight, and 2 more" in content["error"]["message"]
        assert endpoint.ask("hello")[0] == 200
        assert slow.result()[0] == 200
    assert endpoint.fleet.in_flight == 0


@pytest.mark.unit_slow
@pytest.mark.parametrize("stream", [False, True])
def test_an_answer_that_takes_too_long(make_endpoint, stream):
    settings = ServeConfig(limits=ServeLimitsConfig(answer_s=0.5))
    endpoint = make_endpoint(settings=settings).wait_until_ready()
    status, content = endpoint.ask("endless" if stream else "stall", stream=stream)
    if stream:
        assert (status, content[-1]) == (200, "(broken off)")
        assert json.loads(content[-2][6:])["error"]["code"] == 504
    else:
        assert status == 504
        assert "longer than serve.limits.answer_s=0.5 s" in content["error"]["message"]
    wait_until(lambda: endpoint.fleet.in_flight == 0, 10)


class TestGrammars:
    """vLLM answers 500 when a grammar does not compile; its engine goes on."""

    def ask(self, endpoint, text, **fields):
        chat = {"messages": [{"role": "user", "content": text}], **fields}
        return endpoint.ask("", body=json.dumps(chat).encode())

    @pytest.mark.parametrize(
        ("name", "value"),
        [
            ("structured_outputs", {"grammar": "root ::= ("}),
            ("response_format", {"type": "json_schema", "json_schema": {"maxItems": 9999}}),
            ("tool_choice", "required"),
        ],
    )
    def test_a_grammar_that_fails_is_the_request_at_fault(self, shared, name, value):
        status, content = self.ask(shared, "no grammar", **{name: value})
        assert (status, content["error"]["type"]) == (400, "BadRequestError")
        assert f"the engine cannot follow {name} of the request" in content["error"]["message"]

    @pytest.mark.parametrize(
        "fields", [{}, {"response_format": {"type": "text"}}, {"tool_choice": "auto"}]
    )
    def test_without_a_grammar_it_is_the_engine(self, shared, fields):
        assert self.ask(shared, "no grammar", **fields)[0] == 502

    @pytest.mark.parametrize(
        ("word", "fields", "code"),
        [
            ("no-grammar", {"structured_outputs": {"grammar": "root ::= ("}}, 400),
            ("no-grammar", {}, 502),
            ("bad-request", {}, 400),
        ],
    )
    def test_a_failure_within_a_stream(self, shared, word, fields, code):
        status, lines = self.ask(shared, f"one {word} two", stream=True, **fields)
        assert (status, len(lines), lines[-1]) == (200, 3, "data: [DONE]")
        error = json.loads(lines[1][6:])["error"]
        assert error["code"] == code
        assert ("structured_outputs" in error["message"]) == bool(fields)

    def test_an_answer_that_looks_like_a_failure(self, shared):
        text = 'data:{"error":1} {"error":2}'
        lines = self.ask(shared, text, stream=True)[1]
        words = [json.loads(line[6:])["choices"][0]["delta"]["content"] for line in lines[:-1]]
        assert words == ['data:{"error":1} ', '{"error":2} ']

    @pytest.mark.unit_slow
    def test_an_engine_that_dies_of_a_grammar(self, make_endpoint):
        endpoint = make_endpoint().wait_until_ready()
        assert self.ask(endpoint, "break", structured_outputs={"regex": "a"})[0] == 502
        assert_comes_back(endpoint)

    def test_a_grammar_that_is_too_large(self, shared):
        assert self.ask(shared, "a", structured_outputs={"choice": ["a"] * 500})[0] == 200
        settings = ServeLimitsConfig(field_items=100, field_characters=200)
        for value, key in (({"choice": [""] * 200}, "items"), ({"regex": "a" * 300}, "characters")):
            with pytest.raises(Refused, match=rf"'x' has more than serve\.limits\.field_{key}="):
                check_size({"x": value}, settings, context_tokens=None, max_requests=9)


class TestWithoutAKey:
    """A web page in a browser of this machine must not get through."""

    @pytest.fixture(scope="class")
    def own(self, tmp_path_factory) -> Iterator[Endpoint]:
        endpoint = Endpoint(tmp_path_factory.mktemp("own"), token=None).wait_until_ready()
        yield endpoint
        endpoint.close()

    @pytest.mark.parametrize("host", ["evil.com", "evil.com:8000", "127.0.0.1.evil.com", "[::2]"])
    def test_a_name_that_points_here(self, own, host):
        for method, path in (("GET", "/v1/models"), ("GET", "/health"), ("POST", "/tokenize")):
            status, content = own.send(method, path, b"{}", None, Host=host)
            assert (status, content["error"]["type"]) == (403, "PermissionDeniedError")
        assert f"the header Host is '{host}'" in content["error"]["message"]

    @pytest.mark.parametrize("host", ["127.0.0.1", "localhost:8000", "[::1]:8000", "LOCALHOST"])
    def test_own_names(self, own, host):
        assert own.send("GET", "/v1/models", None, None, Host=host)[0] == 200

    @pytest.mark.parametrize(
        "content_type",
        ["", "text/plain", "application/x-www-form-urlencoded", "multipart/form-data"],
    )
    def test_content_that_a_form_can_send(self, own, content_type):
        body = json.dumps({"messages": [{"role": "user", "content": "hello"}]}).encode()
        given = {"Content_Type": content_type} if content_type else {}
        status, content = own.send("POST", "/v1/chat/completions", body, None, **given)
        assert (status, content["error"]["type"]) == (415, "UnsupportedMediaTypeError")
        assert "hello" not in own.notes.read_text()
        json_type = "application/json; charset=utf-8"
        assert (
            own.send("POST", "/v1/chat/completions", body, None, Content_Type=json_type)[0] == 200
        )
        own.notes.write_text("")

    def test_a_browser_gets_no_permission(self, own):
        """The preflight of a page elsewhere."""
        asked = {"Origin": "http://evil.com", "Access_Control_Request_Method": "POST"}
        assert own.send("OPTIONS", "/v1/chat/completions", None, None, **asked)[0] == 405

    def test_with_a_key_the_key_is_enough(self, shared):
        body = b'{"messages": [{"role": "user", "content": "hello"}]}'
        assert shared.send("POST", "/v1/chat/completions", body, Host="proxy.example")[0] == 200
