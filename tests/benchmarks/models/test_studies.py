from types import SimpleNamespace

from benchmarks.harness.reporting import ROOT
from benchmarks.models import studies


def test_studies_are_summarised_over_their_seeds() -> None:
    def run(accuracy: float, gain: float | None) -> SimpleNamespace:
        return SimpleNamespace(
            test=SimpleNamespace(n=40, accuracy=accuracy, macro_f1=0.9, ece=0.01),
            kfold=SimpleNamespace(accuracy_corrected=0.95),
            external=None,
            comparison=None if gain is None else SimpleNamespace(difference=gain),
            stages={"search": 120.0},
        )

    probes = [{"test": 0.9}, {"test": 0.9, "external": 0.8}]
    row = studies.summarise("tools", [run(0.9, 0.02), run(1.0, None)], probes)
    assert (row["n"], row["runs"], row["minutes"]) == (40, 2, 2.0)
    assert row["test"] == "0.9500 ± 0.0707"
    assert (row["vs. baseline"], row["external"]) == ("0.0200", "–")
    assert (row["probe, test"], row["probe, external"]) == ("0.9000 ± 0.0000", "0.8000")
    assert {f"{name}.py" for name in studies.STUDIES} <= {
        path.name for path in (ROOT / "spaces").glob("*.py")
    }
