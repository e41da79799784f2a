"""The contract that finds imports by a string."""

from __future__ import annotations

from tools.import_contracts import strings_naming


def package(folder, name, text):
    (folder / name).mkdir()
    (folder / name / "__init__.py").write_text(text)


def test_a_string_that_names_a_module_above_is_found_wherever_it_stands(tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(tmp_path)
    package(
        tmp_path,
        "ssc_lower",
        "import importlib\n"
        "module = importlib.import_module('ssc_upper.hub')\n"
        "command = ('python', '-m', 'ssc_upper')\n"
        "place = 'ssc_upper.cli:main'\n"
        "code = 'from ssc_upper.cli import main; main()'\n",
    )
    assert sorted(line for _, line, _ in strings_naming("ssc_lower", ["ssc_upper"])) == [2, 3, 4, 5]


def test_docstrings_and_longer_names_are_no_imports(tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(tmp_path)
    package(tmp_path, "ssc_plain", '"""See ssc_upper.hub."""\nname = "ssc_upper_extra"\nother = "not_ssc_upper.hub"\n')
    assert list(strings_naming("ssc_plain", ["ssc_upper"])) == []
    assert list(strings_naming("ssc_plain", [])) == []


def test_a_package_below_its_own_room_names_no_module_of_it_and_the_room_may(tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(tmp_path)
    package(tmp_path, "ssc_server", "place = 'ssc_server.lab:bench'\nown = 'ssc_server.cli:main'\n")
    package(tmp_path / "ssc_server", "lab", "place = 'ssc_server.lab.bench'\n")
    assert [text for _, _, text in strings_naming("ssc_server", ["ssc_server.lab"])] == ["ssc_server.lab:bench"]
    assert list(strings_naming("ssc_server.lab", [])) == []
