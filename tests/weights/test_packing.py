import pytest
import torch

from quant_engine.weights.packing import pack, unpack, words_per_row


@pytest.mark.parametrize("bits", range(1, 9))
@pytest.mark.parametrize("count", [1, 7, 31, 32, 33, 64, 100, 576])
def test_round_trip_is_exact_at_every_width_and_row_length(bits, count):
    codes = torch.randint(0, 2**bits, (5, count), generator=torch.Generator().manual_seed(bits * 1000 + count))
    words = pack(codes, bits)
    assert words.dtype == torch.int32
    assert torch.equal(unpack(words, bits, count), codes.to(torch.uint8))


@pytest.mark.parametrize("bits", range(1, 9))
def test_no_bits_are_wasted_beyond_the_last_word_of_a_row(bits):
    for count in range(1, 200):
        assert words_per_row(count, bits) * 32 - count * bits < 32
        assert pack(torch.zeros((1, count), dtype=torch.uint8), bits).shape[1] == words_per_row(count, bits)


@pytest.mark.parametrize("bits", range(1, 9))
def test_layout_is_the_documented_bit_stream(bits):
    codes = torch.randint(0, 2**bits, (1, 45), generator=torch.Generator().manual_seed(bits))
    stream = sum(code << (j * bits) for j, code in enumerate(codes[0].tolist()))
    words = [(stream >> (32 * k)) & 0xFFFFFFFF for k in range(words_per_row(45, bits))]
    assert [word & 0xFFFFFFFF for word in pack(codes, bits)[0].tolist()] == words


def test_bad_widths_and_codes_are_refused():
    with pytest.raises(ValueError, match="from 1 to 8"):
        pack(torch.zeros((1, 1), dtype=torch.uint8), 9)
    with pytest.raises(ValueError, match="from 0 to 3"):
        pack(torch.tensor([[4]]), 2)
    with pytest.raises(ValueError, match="take 2 words"):
        unpack(torch.zeros((1, 3), dtype=torch.int32), 4, 16)
