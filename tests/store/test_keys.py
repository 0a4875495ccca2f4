"""Keys are pinned: whoever changes one makes every user compute everything again."""

from dataclasses import replace

import numpy as np
import pytest

from tests.store.builders import recipe, step_fields
from wanpipe.runtime.documents import to_builtins
from wanpipe.store import key_of, keys, material
from wanpipe.store.keys import canonical, hash_array, hash_file, is_key, is_prefix


def test_canonical_json_is_one_text_only() -> None:
    material = {"b": [1, 2.0, None, True], "a": {"z": "é\n", "y": 1e-7}}
    assert canonical(material) == '{"a":{"y":1e-07,"z":"é\\n"},"b":[1,2.0,null,true]}'.encode()
    assert canonical({"a": 1, "b": 2}) == canonical({"b": 2, "a": 1})


def test_an_integer_and_a_float_are_different_materials() -> None:
    assert key_of({"a": 1}) != key_of({"a": 1.0})


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_material_without_a_number_has_no_key(value: float) -> None:
    with pytest.raises(ValueError, match="JSON"):
        key_of({"sigma": value})


def test_keys_of_objects_are_the_pinned_ones() -> None:
    assert key_of({}) == "dc7048f8f8747f561349cde127705c16"
    assert key_of({"stage": "denoise", "sigma": 0.5}) == "612399df59f9db3ebc85ea4298ac888f"


def test_only_the_material_changes_a_key() -> None:
    one = recipe()
    noted = replace(one, made={"time": "now"}, inputs={}, step=3, parent="f" * 32)
    assert noted.key == one.key


def test_the_key_of_a_step_is_the_pinned_one() -> None:
    assert recipe().key == "0b1d97a531984aa3800bccb6dfcf9fae"


def test_numbers_are_cast_before_they_are_hashed() -> None:
    fields = step_fields(0, guide_scale=5, timestep=999, loras=[["f" * 32, 1]])
    noise = {"algorithm": "n", "seed": 0, "shape": [4, 2, 3, 5]}
    whole = material("denoise", noise=noise, text="a" * 32, **fields)
    floats = fields | {"guide_scale": 5.0, "timestep": 999.0, "loras": [["f" * 32, 1.0]]}
    assert key_of(to_builtins(whole)) == key_of(
        {"schema": 1, "stage": "denoise", "algorithm": 1, "noise": noise, "text": "a" * 32} | floats
    )


def test_the_hash_of_an_array_does_not_depend_on_its_memory_layout() -> None:
    array = np.arange(24, dtype=np.float32).reshape(2, 3, 4)
    assert hash_array(array) == "b22afec4d40d93bdd1ebad9ba76ba368"
    assert hash_array(np.asfortranarray(array)) == hash_array(array)
    assert hash_array(array.astype(">f4")) == hash_array(array)
    assert hash_array(array.astype(np.float64)) != hash_array(array)


def test_a_file_hashes_the_same_in_pieces_of_any_size(tmp_path, monkeypatch) -> None:
    (tmp_path / "file").write_bytes(bytes(range(256)) * 10)
    told: list[tuple[int, int]] = []
    assert hash_file(tmp_path / "file") == "d7d3aba3d305d2c3ce94c58d4049e3e5"
    monkeypatch.setattr(keys, "READ_BYTES", 700)
    digest = hash_file(tmp_path / "file", lambda done, total: told.append((done, total)))
    assert digest == "d7d3aba3d305d2c3ce94c58d4049e3e5"
    assert told == [(700, 2560), (1400, 2560), (2100, 2560), (2560, 2560)]


def test_a_prefix_is_four_to_thirty_two_hex_digits() -> None:
    assert [is_prefix(text) for text in ("abc", "abcd", "a" * 32, "a" * 33, "abcg", "ABCD")] == [
        *(False, True, True, False, False, False)
    ]
    assert is_key("0" * 32)
    assert not is_key("0" * 31)
