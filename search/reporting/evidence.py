"""What a run's numbers are worth, in words: for the terminal's closing lines and the report."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from search.console.formatting import count
from search.tuning.study import BASELINE_TRIAL


def describe_gain(summary: Mapping[str, Any]) -> str | None:
    """Say whether the search gained anything over its first trial; None before that is known."""
    if summary.get("best", {}).get("trial") == BASELINE_TRIAL:
        return "none: the first trial's recipe won the folds"
    compared = summary.get("comparison")
    if not compared:
        return None
    low, high = (100 * bound for bound in compared["difference_ci95"])
    return (
        f"{100 * compared['difference']:+.1f} points (95 % {low:+.1f} to {high:+.1f},"
        f" {compared['n_model_only_correct']} won, {compared['n_baseline_only_correct']} lost,"
        f" p = {compared['p_value']:.2g}): {compared['verdict']}"
    )


def describe_calibration(summary: Mapping[str, Any]) -> str | None:
    """Say how far probabilities are off on held-out images, and were before the temperature."""
    calibration = summary.get("calibration", {})
    if "test" not in calibration:
        return None
    before, after = (calibration["test"][when]["ece"] for when in ("before", "after"))
    return (
        f"probabilities are off by {after:.4f} on average"
        f" ({before:.4f} before the temperature {calibration['temperature']:.2f})"
    )


def describe_issues(summary: Mapping[str, Any]) -> str | None:
    """Say how many labels look wrong; None where the folds were not asked."""
    issues = summary.get("label_issues")
    if issues is None:
        return None
    if not issues["n"]:
        return "no label looks wrong"
    return f"{count(issues['n'], 'label')} look{'s' if issues['n'] == 1 else ''} wrong"


def describe_center_crop(summary: Mapping[str, Any]) -> str | None:
    """Say what a second look at each image's middle does; None where none was tried."""
    second = summary.get("kfold", {}).get("center_crop")
    if second is None:
        return None
    with_it, without = second["accuracy_mean"], second["accuracy_mean_without"]
    losses = f"log loss {second['log_loss']:.3f} instead of {second['log_loss_baseline']:.3f}"
    if second["kept"]:
        return f"yes: folds {with_it:.4f} instead of {without:.4f}, {losses}"
    return f"no: folds would be {with_it:.4f} instead of {without:.4f}, {losses}"


def evidence_rows(summary: Mapping[str, Any], issues_file: str) -> list[tuple[str, str]]:
    """Return the closing lines of the terminal: what is said of, and what is said."""
    rows = []
    if gain := describe_gain(summary):
        rows.append(("over trial 0", gain))
    if center_crop := describe_center_crop(summary):
        rows.append(("looks twice", center_crop))
    if calibration := describe_calibration(summary):
        rows.append(("calibration", calibration))
    if issues := describe_issues(summary):
        where = f": see {issues_file}" if summary["label_issues"]["n"] else ""
        rows.append(("labels", issues + where))
    return rows
