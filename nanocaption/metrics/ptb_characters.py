"""What the Penn Treebank tokenizer takes each character for.

The rules in `ptb_rules` are written over a small alphabet: ASCII, a few signs that have rules of their own,
and one stand-in character for each of the kinds below. `shadow` maps a text to that alphabet, character by
character, so that a match found in the shadow is a slice of the text.

The tables hold what was observed when the reference (CoreNLP 3.4.1) was run, as a program, on every character
of the Basic Multilingual Plane between two letters, between two digits, and alone. They are older than
Python's own Unicode data, hence the explicit ranges, and one frozen standard as the ground for the letters.
Anything absent (emoji, unassigned and private characters, controls) separates words and vanishes.
"""

import unicodedata
from functools import cache
from string import printable

LETTER, MARK, DIGIT, SYMBOL, SPACE, DELETED = "\u00e9", "\u0301", "\u0663", "\u2605", "\u2003", "\u0001"
ASTRAL = "\u0002"  # beyond the Basic Multilingual Plane: vanishes too, but counts as two characters


def _codes(table: str) -> list[int]:
    """The code points of "A0 91-94", which are hexadecimal."""
    pairs = [(int(first, 16), int(last or first, 16)) for first, _, last in (i.partition("-") for i in table.split())]
    return [code for first, last in pairs for code in range(first, last + 1)]


# What the rules name: no-break space, soft hyphen, currency, fractions, quotes, dashes, superscripts.
NAMED = "".join(map(chr, _codes(
    "80 85 91-94 96-97 A0 A2-A4 AB AD B2-B3 B9 BB-BE 58A 66B-66C 2010-2011 2013-2015 2018-201F 2026 2039-203A 2044 "
    "2070 2074-207E 2080-208E 20A0 20AC 2153-2154 3001"
)))  # fmt: skip
SPACES = "2000-200A 3000"
# Letters beyond those of Unicode 3.2, which Python keeps beside its newest data.
MORE_LETTERS = """
221-2BA 2C6-2CF 2EC 370-374 376-377 37B-37D 3CF 3F7-3FF 4CF-527 620-63F 6EE-6EF 6FF 72D-72F 74D-77F 7CA-7EA 7F4-7F5
7FA 800-815 81A 824 828 840-858 8A0 8A2-8AC 904 971-977 979-97F 9BD 9CE A8C AE1 B35 B71 BB6 BD0 C3D C58-C59 CBD
CF1-CF2 D29-D3A D3D D4E D7A-D7F EDE-EDF F6B-F6C F8C 1022-1028 103F 105A-105D 1061 1065-1066 106E-1070 1075-1081 108E
10C7 10CD 10F9-10FA 10FC-1247 1287 12AF 12CF 12EF-130F 131F-1347 1380-138F 1677-167F 18AA 18B0-18F5 1900-191C
1950-196D 1970-1974 1980-19AB 19C1-19C7 1A00-1A16 1A20-1A54 1AA7 1B05-1B33 1B45-1B4B 1B83-1BA0 1BAE-1BAF 1BBA-1BE5
1C00-1C23 1C4D-1C4F 1C5A-1C7D 1CE9-1CEC 1CEE-1CF1 1CF5-1CF6 1D00-1DBF 1E9C-1EFF 2090-209C 2132 213C 214E 2183-2184
2C00-2C2E 2C30-2C5E 2C60-2CE4 2CEB-2CEE 2CF2-2CF3 2D00-2D25 2D27 2D2D 2D30-2D67 2D6F 2D80-2D96 2DA0-2DA6 2DA8-2DAE
2DB0-2DB6 2DB8-2DBE 2DC0-2DC6 2DC8-2DCE 2DD0-2DD6 2DD8-2DDE 2E2F 312D 31B8-31BA 9FA6-9FCC A4D0-A4FD A500-A60C
A610-A61F A62A-A62B A640-A66E A67F-A697 A6A0-A6E5 A717-A71F A722-A788 A78B-A78E A790-A793 A7A0-A7AA A7F8-A801
A803-A805 A807-A80A A80C-A822 A840-A873 A882-A8B3 A8F2-A8F7 A8FB A90A-A925 A930-A946 A960-A97C A984-A9B2 A9CF
AA00-AA28 AA40-AA42 AA44-AA4B AA60-AA76 AA7A AA80-AAAF AAB1 AAB5-AAB6 AAB9-AABD AAC0 AAC2 AADB-AADD AAE0-AAEA
AAF2-AAF4 AB01-AB06 AB09-AB0E AB11-AB16 AB20-AB26 AB28-AB2E ABC0-ABE2 D7B0-D7C6 D7CB-D7FB FA2E-FA6D FA70-FAD9
"""
DIGITS = """
660-669 6F0-6F9 7C0-7C9 966-96F 9E6-9EF A66-A6F AE6-AEF B66-B6F BE6-BEF C66-C6F CE6-CEF D66-D6F E50-E59
ED0-ED9 F20-F29 1040-1049 1090-1099 17E0-17E9 1810-1819 1946-194F 19D0-19D9 1A80-1A89 1A90-1A99
1B50-1B59 1BB0-1BB9 1C40-1C49 1C50-1C59 A620-A629 A8D0-A8D9 A900-A909 A9D0-A9D9 AA50-AA59 ABF0-ABF9
FF10-FF19
"""
MARKS = """
2C2-2C5 2D2-2DF 2E5-2EB 2ED 2EF-36F 375 378-379 384-385 3F6 483-487 55A-55F 591-5BD 5BF 5C1-5C2 5C4-5C5
5C7 615-61A 64B-65E 670 6D6-6E4 6E7-6ED 6FD-6FE 70F 711 730-74C 7A6-7B0 7EB-7F3 900-903 93C 93E-94E
951-955 962-963 981-983 9BC 9BE-9C4 9C7-9C8 9CB-9CD 9D7 9E2-9E3 A01-A03 A3C A3E-A4F A81-A83 ABC ABE-ACF
B82 BBE-BC2 BC6-BC8 BCA-BCD C01-C03 C3E-C56 D3E-D44 D46-D48 E31 E34-E3A E47-E4E EB1 EB4-EBC EC8-ECD
"""
SYMBOLS = """
A1 A5-A9 AC AE-B1 B4 B6-B8 BF D7 F7 37E 387 589 5BE 5C0 5C3 5C6 5F3-5F4 600-603 606-60C 614 61B 61E-61F
66A 66D 6D4 700-70D 7F6-7F8 964-965 E3F E4F 1FBD 2016-2017 201F-2023 2030-2038 203B 203E-2042 20A4
2100-2101 2103-2106 2108-2109 2114 2116-2118 211E-2123 2125 2127 2129 212E 213A-213B 2140-2144 214A-214D
214F 2155-215E 2190-2BFF 3002 3012 30FB FF01-FF0F FF1A-FF20 FF3B-FF40 FF5B-FF65 FFE0-FFE1 FFE5-FFE6
"""


@cache
def _kinds() -> list[str]:
    category = unicodedata.ucd_3_2_0.category
    kinds = [LETTER if category(chr(code))[0] == "L" else DELETED for code in range(0x10000)]
    tables = ((SYMBOL, SYMBOLS), (MARK, MARKS), (DIGIT, DIGITS), (LETTER, MORE_LETTERS), (SPACE, SPACES))
    for kind, table in tables:
        for code in _codes(table):
            kinds[code] = kind
    for sign in "\t\n" + printable[:95] + NAMED:
        kinds[ord(sign)] = sign
    return kinds


class _Shadows(dict):
    def __missing__(self, code: int) -> str:
        kind = self[code] = _kinds()[code] if code < 0x10000 else ASTRAL
        return kind


_SHADOWS = _Shadows()


def shadow(text: str) -> str:
    """`text` in the alphabet of the rules; same length, character by character."""
    return text if text.isascii() and text.isprintable() else text.translate(_SHADOWS)
