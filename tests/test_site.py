"""`make docs`: the site builds without a warning, and has a page for every package."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]


@pytest.mark.slow
def test_the_site_builds_with_readme_docs_and_the_api(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--quiet", "--site-dir", str(tmp_path / "site")]
    environment = {**os.environ, "NO_MKDOCS_2_WARNING": "1"}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0 and not done.stdout + done.stderr, done.stdout + done.stderr
    start = (tmp_path / "site" / "index.html").read_text(encoding="utf-8")
    assert 'src="pictures/demo.png"' in start and "make demo" in start
    model = (tmp_path / "site" / "api" / "unimodal.model" / "index.html").read_text(encoding="utf-8")
    assert "Chameleon's QK-norm" in model and "unimodal.model.attention" in model
    pages = {path.parent.name for path in (tmp_path / "site" / "api").glob("*/index.html")}
    packages = {path.parent.name for path in (ROOT / "unimodal").glob("*/__init__.py")}
    assert pages >= {f"unimodal.{name}" for name in packages} | {"tokenizers_vq", "data_pipelines.shards"}
