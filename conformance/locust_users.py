"""Users of locust who stream chats; any answer but a whole one is a failure."""

import json
import os

from locust import HttpUser, constant, task


class Chatting(HttpUser):
    """One after the other."""

    wait_time = constant(0.1)

    @task
    def stream(self) -> None:
        """A short answer, with its usage."""
        body = {
            "model": os.environ["PLAIT_MODEL"],
            "messages": [{"role": "user", "content": "Count to five."}],
            "max_tokens": 8,
            "stream": True,
            "stream_options": {"include_usage": True},
        }
        route = "/v1/chat/completions"
        with self.client.post(route, json=body, stream=True, catch_response=True) as answer:
            events = [line[6:] for line in answer.iter_lines() if line.startswith(b"data: ")]
            if answer.status_code != 200 or events[-1:] != [b"[DONE]"]:
                answer.failure(f"{answer.status_code}: {events[-1:]}")
            elif not json.loads(events[-2])["usage"]["completion_tokens"]:
                answer.failure("no tokens")
