"""The HTTP interface against schemathesis and damaged bodies: no 5xx, and as OpenAPI describes."""

from __future__ import annotations

import collections
import random
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings

from search.deployment.predictor import load
from search.deployment.server.middleware import Limits
from tests.fixtures.serving import serving
from tests.system.fuzz.mutations import draw_body, valid_images

httpx2 = pytest.importorskip("httpx2", reason="needs the extra: dev")
pytest.importorskip("schemathesis", reason="needs the extra: fuzz")

from schemathesis import Case, GenerationMode, openapi  # noqa: E402
from schemathesis.checks import negative_data_rejection, positive_data_acceptance  # noqa: E402

N_BODIES = 300
LIMITS = Limits(body_bytes=100_000, pixels=1_000_000, images=4, seconds=20.0)


@pytest.fixture(scope="module")
def url(colour_run: Path) -> Iterator[str]:
    with serving(load(colour_run), LIMITS) as url:
        yield url


@pytest.mark.filterwarnings("ignore")
def test_the_interface_conforms_to_its_openapi_document(url):
    """Valid and invalid requests drawn from the document are answered as it describes."""
    seen: collections.Counter[tuple[str, int]] = collections.Counter()
    schema = openapi.from_url(f"{url}/openapi.json")
    for result in schema.get_all_operations():
        operation = result.ok()
        # Without a body or parameters no request is invalid.
        modes = list(GenerationMode) if operation.body else [GenerationMode.POSITIVE]
        for mode in modes:

            def check(case: Case) -> None:
                # Whether bytes are an image is beyond the document: tests of the app cover it.
                answer = case.call_and_validate(
                    timeout=60, excluded_checks=[positive_data_acceptance, negative_data_rejection]
                )
                seen[case.path, answer.status_code] += 1

            calm = settings(max_examples=40, deadline=None, suppress_health_check=list(HealthCheck))
            calm(given(operation.as_strategy(generation_mode=mode))(check))()
    assert {path for path, status in seen if status == 200} >= {"/classes", "/healthz"}
    assert seen["/predict", 422] > 0
    assert all(status < 500 for _, status in seen)


@pytest.mark.filterwarnings("ignore")
def test_damaged_bodies(url):
    rng, images = random.Random(0), valid_images()
    statuses = collections.Counter()
    with httpx2.Client(base_url=url, timeout=60) as client:
        for _ in range(N_BODIES):
            body, kind = draw_body(rng, images)
            answer = client.post("/predict", content=body, headers={"content-type": kind})
            statuses[answer.status_code] += 1
            if answer.status_code != 200:
                assert list(answer.json()) == ["detail"]
                assert "Traceback" not in answer.text
        assert client.get("/healthz").status_code == 200
    assert {200, 422} <= set(statuses) <= {200, 400, 413, 422}
