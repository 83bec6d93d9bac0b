"""The folder of pages: complete, without a file of an earlier run, and without the name of another machine."""

import re
from pathlib import Path

from common.progress import Silent
from evaluate.dashboard.write import write_dashboard


def test_the_folder_has_the_page_its_scripts_and_the_data(toy, tmp_path: Path) -> None:
    write_dashboard(tmp_path, toy.evidence, progress=Silent())
    page = (tmp_path / "index.html").read_text()
    named = re.findall(r'(?:src|href)="([^"#]+)"', page)
    assert "data/index.js" in named
    for name in named:
        assert name == "data:," or (tmp_path / name).is_file(), name
    assert (tmp_path / "data" / "pack-00000.js").is_file()


def test_packs_of_an_earlier_run_are_removed(toy, tmp_path: Path) -> None:
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "pack-00099.js").write_text("old")
    write_dashboard(tmp_path, toy.evidence, progress=Silent())
    assert not (tmp_path / "data" / "pack-00099.js").exists()


def test_no_file_names_another_machine_or_parses_text_as_code(toy, tmp_path: Path) -> None:
    write_dashboard(tmp_path, toy.evidence, progress=Silent())
    for path in [tmp_path / "index.html", *(tmp_path / "pages").iterdir()]:
        text = path.read_text().replace("http://www.w3.org/2000/svg", "")
        assert "://" not in text, path.name
        assert not re.search(
            r"innerHTML|outerHTML|insertAdjacent|document\.write|eval\(|new Function|fetch\(|XMLHttp", text
        )
        assert not re.search(r"\son\w+=\"", text), path.name
