"""The token rules of the Penn Treebank tokenizer that the field's caption scores stand on, as data.

Written from observed behaviour, in words and by running the reference as a program; none of its code was
read. A rule is `(first characters, pattern, render)`. The pattern's group 1 is the token; what follows it in
the pattern is look-ahead that must be there but is not consumed. At each position the rule with the longest
match wins, the look-ahead counted; on a tie the rule that stands first. So the order below carries meaning.
Patterns run over the alphabet of `ptb_characters`; `render` turns the original characters into the token.
"""

import re
from collections.abc import Callable
from functools import cache
from string import ascii_letters, digits, printable, punctuation

from nanocaption.metrics.ptb_characters import ASTRAL, DELETED, DIGIT, LETTER, MARK, NAMED, SPACE, SYMBOL

Render = Callable[[str], str]
Rule = tuple[str | None, str, Render]  # None: any character may be the first

# --- pieces of patterns -------------------------------------------------------------------------------------
ENTITY_LETTER = "&[aeiouAEIOU](?i:acute|grave|uml);"
LET = f"(?:[A-Za-z{LETTER}{MARK}\u00ad]|{ENTITY_LETTER})"
DIG = f"[0-9{DIGIT}]"
LETDIG = f"(?:[A-Za-z0-9{LETTER}{MARK}{DIGIT}\u00ad]|{ENTITY_LETTER})"
WORD = rf"{LET}{LETDIG}*(?:[.!?]{LET}{LETDIG}*)*"
APOS = "(?:['\u2019\u0092]|&(?i:apos);)"
ANY_APOS = "(?:['\u2019\u0092`\u2018\u201b\u0091]|&(?i:apos);)"
WHITE = f"[ \t\n\u00a0{SPACE}]"
CLITIC = f"{APOS}(?i:[smd]|re|ve|ll)"
PLAIN_NOT_N = "[A-Za-z\u00ad]*[A-MO-Za-mo-z]\u00ad*"
ALNUM = f"[A-Za-z0-9{LETTER}{DIGIT}]"
ALPHA = f"[A-Za-z{LETTER}]"
THING = rf"(?:[dDoOlL]{ANY_APOS}{ALNUM})?{ALNUM}+"
THINGS = rf"{THING}(?:[-_\u2010\u2011\u058a]{THING})*"
HYPHENS = r"[A-Za-z0-9][A-Za-z0-9.,\u00ad]*(?:-(?:(?:[A-Za-z]\.){2,}|[A-Za-z0-9\u00ad]+))+"
NAME = "[A-Za-z][A-Za-z0-9_:.-]*"
TAG = rf"<(?:{NAME}(?: +{NAME}(?: *= *(?:\"[^\"]*\"|'[^']*'))?)* *\/? *|\/{NAME} *|[!?][A-Za-z-][^>\r\n]*)>"
URL_END = r"[^ \t\n\"<>|.!?(){},-]"
PATH = rf"(?:[^ \t\n\"<>|(){{}}]+{URL_END}|{ASTRAL})"
DOTTED = r"[^ \t\n!\"$'(),./0-9:;<=>?@A-Z\[\\\]^_`{|}-]+"
CAPITALS_JOINED = "[A-Z]+(?:(?:[&+]|&(?i:amp);)[A-Z]+)+"
MAIL, MAIL_END = r"[^ \t\n\u00a0\"<>|(){}]", r"[^ \t\n\u00a0\"<>|(){}.]"
LOOSE_PATH = rf"(?:[^ \t\n\"<>|()]+{URL_END}|{ASTRAL})"
HOST = r"[^ \t\n\"<>|.!?(){},]+"
ACRONYM_US = r"(?i:(?:(?:canada|sino|korean|eu|japan|non)-)?u\.s|u\.s\.-u\.(?:k|s\.s\.r))"
SENTENCE_STARTERS = (
    "About According Additionally After An A As At But Earlier He Her Here However If In It Last Many "
    "More Mr. Ms. Now Once One Other Our She Since So Some Such That The Their Then There These They This "
    "We When While What Yet You"
)


def _any_case(word: str) -> str:
    return f"(?i:{re.escape(word)})"


def _capital_first(word: str) -> str:
    """A capital, then any case."""
    return re.escape(word[0].upper()) + _any_case(word[1:])


def _capital_or_small_first(word: str) -> str:
    """A first letter in any case, then small ones."""
    return _any_case(word[0]) + re.escape(word[1:])


def _either(words: str, form: Callable[[str], str] = _any_case) -> str:
    """Alternatives, longest first so that the first match is the longest."""
    return "(?:" + "|".join(map(form, sorted(words.split(), key=len, reverse=True))) + ")"


SENTENCE_AHEAD = rf"{WHITE}+(?:{_either(SENTENCE_STARTERS, _capital_first)}|{TAG}){WHITE}"

# Before one letter the period of the second is kept, that of the first is not ("etc.x" is two tokens, "mr.x" one).
NEVER_FINAL = (
    "adj adm adv alex assoc asst atty attys ave brig capt cf cie cmdr col comdr cpl dept det dr drs elec ens ft gen "
    "gov govs hon insp invt jos lieut lt maj messrs mlle mme mr mrs ms msgr mt natl pfc ph pres prof profs pvt rep "
    "reps rev sen sens sfc sgt spc st ste supt supts treas vs wm"
)
OFTEN_FINAL = (
    "al ala apr ariz assn aug bancorp bhd bldg blvd bros calif co colo conn corp cos ct dak dec esq est etc ext feb "
    "fla fri ga inc ind intl jan jr jul jun kan kans ky ltd mar md mich minn mo mon mont neb nev nov oct okla penn "
    "plc rd rt sep sept seq sq sr sys tel tenn thu thurs tue tues univ va vt wed wis wisc wyo"
)
ABBREVIATIONS = NEVER_FINAL + " " + OFTEN_FINAL
CAPITAL_ABBREVIATIONS = "ark az del ill la mass miss ore pa tex wash"
FIRMS = "pte ptes pty ptys ppte ppty"
SMALL_ABBREVIATIONS = "mfg mtg " + FIRMS
BEFORE_NUMBER = "ca figs fig prop nos no art bldg pp op"
CAPITALISED = _either(CAPITAL_ABBREVIATIONS, _capital_first)
SENTENCE_FINAL = f"(?:{_either(OFTEN_FINAL + ' ph.d ed.d')}|{CAPITALISED}|{_either(FIRMS, _capital_or_small_first)})"
SIGN = f"A-Za-z0-9{LETTER}{MARK}{DIGIT}\u00ad"
FILE_ENDINGS = (
    "c h x gz pl ps py bat bmp cgi cpp dll doc exe gif htm jar jpg mov mp3 pdf php png ppt sql tar txt "
    "wav xml zip docx html java jpeg class"
)


# --- from characters to a token -----------------------------------------------------------------------------
def plain(text: str) -> str:
    """Lower case without soft hyphens; alone, a soft hyphen is a hyphen."""
    token = text.lower()
    return (token.replace("\u00ad", "") or "-") if "\u00ad" in token else token


def as_written(text: str) -> str:
    return text.lower()


def spaces_kept(text: str) -> str:
    """A token with spaces inside: they become no-break spaces, for a later split at spaces."""
    return text.lower().replace(" ", "\u00a0")


def joined(text: str) -> str:
    return spaces_kept(text).replace("(", "-lrb-").replace(")", "-rrb-")


def straight(text: str) -> str:
    """Typographic apostrophes as ASCII. An entity in capitals stays, as it does in the reference."""
    text = re.sub("[\u2019\u0092]|&apos;", "'", text)
    return re.sub("[\u2018\u201b\u0091]", "`", text).lower()


def constant(token: str) -> Render:
    return lambda text: token


def _amp(text: str) -> str:
    return text.lower().replace("&amp;", "&")


QUOTE_FORMS = {
    **dict.fromkeys("\u0091\u2018\u201b\u2039", "`"), **dict.fromkeys("\u0092\u2019\u203a", "'"),
    **dict.fromkeys("\u0093\u201c\u00ab", "``"), **dict.fromkeys("\u0094\u201d\u00bb", "''"),
}  # fmt: skip
QUOTES = "`\u201a\u201e" + "".join(QUOTE_FORMS)
SIGNS = {
    "\u00bc": "1/4", "\u00bd": "1/2", "\u00be": "3/4", "\u2153": "1/3", "\u2154": "2/3",
    "(": "-lrb-", ")": "-rrb-", "[": "-lsb-", "]": "-rsb-", "{": "-lcb-", "}": "-rcb-",
    "\u00a2": "cents", "\u00a3": "#", **dict.fromkeys("\u20ac\u00a4\u20a0\u0080", "$"),
    **dict.fromkeys("\u2013\u2014\u2015\u0096\u0097", "--"),
}  # fmt: skip
ENTITIES = {"&mdash;": "--", "&ndash;": "--", "&md;": "--", "&amp;": "&", "&nbsp;": "", "&lt;": "<", "&gt;": ">"}
SPLIT_WORDS = (
    ("can", "not"), ("'t", "was"), ("'t", "is"), ("gon", "na"), ("wan", "na"), ("got", "ta"), ("lem", "me"),
    ("gim", "me"),
)  # fmt: skip
# Words whose token is not simply their lower case, or depends on what follows.
NEVER_PLAIN = frozenset(
    " ".join((ABBREVIATIONS, BEFORE_NUMBER, CAPITAL_ABBREVIATIONS, SMALL_ABBREVIATIONS)).split()
).union(map("".join, SPLIT_WORDS))

# --- the rules ----------------------------------------------------------------------------------------------
A = ascii_letters
L = ascii_letters + LETTER + MARK + "\u00ad&"
N = digits + DIGIT
Q = "'\u2019\u0092&"
SCRIPT_SIGNS = "\u207a\u207b\u208a\u208b"
SUPERS = "\u00b9\u00b2\u00b3\u2070\u2074\u2075\u2076\u2077\u2078\u2079"
SUBS = "\u2080\u2081\u2082\u2083\u2084\u2085\u2086\u2087\u2088\u2089"

RULES: list[Rule] = [
    ("cCfF", r"([cC]\+\+|[cCfF]#)", plain),
    # cannot, 'tis and their like: the first part here, the rest is a word of its own.
    *((first[0] + first[0].upper(), f"({_any_case(first)}){_any_case(rest)}", plain) for first, rest in SPLIT_WORDS),
    ("<", rf"({TAG})", spaces_kept),
    ("".join(SIGNS), f"([{re.escape(''.join(SIGNS))}])", SIGNS.__getitem__),
    ("&", f"({_either(' '.join(ENTITIES))})", lambda text: ENTITIES[text.lower()]),
    ("&", rf"(&#[0-9]+;|{_either('&ht; &tl; &ur; &lr; &qc; &ql; &qr; &odq; &cdq;')})", plain),
    (L, rf"({WORD}){CLITIC}", plain),
    (A + "\u00ad", rf"({PLAIN_NOT_N})[nN]{ANY_APOS}[tT]", plain),
    (A, rf"({SENTENCE_FINAL}\.)(?:[{SIGN}][^{SIGN}]|-[{SIGN}])", plain),
    (L, f"({WORD})", plain),
    (Q, f"({APOS}(?:[nN]{APOS}?|(?i:em|cause|till?)|[2-9]0[sS]))", as_written),
    ("lLdDjJ", f"([lLdDjJ]{APOS})", as_written),
    ("dDsSoO", f"((?:{_either('dunkin somethin ol')}){APOS})", as_written),
    (A, f"([A-HJ-XZn]{ANY_APOS}{ALPHA}{{2,}})", as_written),
    (A + LETTER, f"({ALPHA}+[aeiouyAEIOUY]{ANY_APOS}[aeiouA-Z]{ALPHA}*)", as_written),
    (A, f"((?i:cont{APOS}d|nor{APOS}easter|c{APOS}mon|e{APOS}er|s{APOS}mores|ev{APOS}ry|li{APOS}l|nat{APOS}l|cap{APOS}n"
        f"|c{APOS}est))", as_written),
    ("oO", f"([oO]{ANY_APOS}[oO])", as_written),
    ("yY", f"([yY]{APOS}){ALPHA}", as_written),
    ("hH", rf"((?i:http)[sS]?:\/\/{PATH})", as_written),
    ("wW", rf"([wW]{{3}}\.(?:{HOST}\.)+[A-Za-z]{{2,4}}(?:\/{LOOSE_PATH})?)", as_written),
    (None, rf"((?:{DOTTED}\.)+{_either('com net org edu')}(?:\/{LOOSE_PATH})?)", as_written),
    (A + digits + "<&",
     rf"((?:<|&(?i:lt);)?[A-Za-z0-9]{MAIL}*@{MAIL_END}+(?:\.{MAIL_END}+)*(?:>|&(?i:gt);)?)", as_written),
    ("@", "(@[A-Za-z_][A-Za-z_0-9]*)", as_written),
    ("#", f"(#{LET}+)", as_written),
    (Q, f"({CLITIC})[^A-Za-z]", straight),
    ("nN", f"([nN]{ANY_APOS}[tT])[^A-Za-z]", straight),
    (N, rf"({DIG}{{1,2}}[-/]{DIG}{{1,2}}[-/]{DIG}{{2,4}})", as_written),
    (N + "+-.,:\u00ad\u066b\u066c", f"([-+]?(?:{DIG}*(?:[.,:\u00ad\u066b\u066c]{DIG}+)+|{DIG}+))", plain),
    (SUPERS + SUBS + SCRIPT_SIGNS, f"([{SCRIPT_SIGNS}]?(?:[{SUPERS}]+|[{SUBS}]+))", as_written),
    (N, rf"((?:{DIG}{{1,4}}[- \u00a0])?{DIG}{{1,4}}(?:\\?\/|\u2044){DIG}{{1,4}})", joined),
    ("-", "(-[lrLR][rscRSC][bB]-)", plain),
    ("pPaA", f"({_either('pro- anti-')})", plain),
    ("sS", r"([sS]&[pP]-500|[sS]&(?i:ls))", plain),
    (A + digits, r"([A-Za-z0-9]+(?:-[A-Za-z]+){0,2}(?:\\?\/[A-Za-z0-9]+(?:-[A-Za-z]+){0,2}){1,2})", plain),
    (A + "$#", r"([A-Z]*\$|#)", plain),
    # Acronyms at the end of a sentence: the period of "plan B. The" is split off, that of "the U.S. The" is not.
    (A, rf"([A-Za-z])\.{SENTENCE_AHEAD}", plain),
    (A, rf"((?:[A-Za-z](?:\.[A-Za-z])+|{ACRONYM_US})\.){SENTENCE_AHEAD}", plain),
    (A, rf"({_either(BEFORE_NUMBER)}\.){WHITE}?{DIG}", plain),
    (A, rf"((?:{_either(ABBREVIATIONS)}|{CAPITALISED}|{_either(SMALL_ABBREVIATIONS, _capital_or_small_first)})\.)",
     plain),
    (A, rf"((?:[A-Za-z](?:\.[A-Za-z])*|{ACRONYM_US}|[pPeE][hHdD]\.[dD])\.)", plain),
    (Q, f"({APOS}[0-9]{{2}}){WHITE}", as_written),
    (L + N, rf"((?:{LETDIG}+\.)+{_either(FILE_ENDINGS)})(?:{WHITE}|[.?!,])", as_written),
    (L, rf"({WORD}\.)[,;:\u3001]", plain),
    ("(", r"(\([0-9]{2,3}\)[ \u00a0]?[0-9]{3,4}[- \u00a0]?[0-9]{3,5})", joined),
    (digits + "+", r"(\+{0,2}(?:[0-9]{2,4}[- \u00a0]){2}[0-9]{3,4}[- \u00a0]?[0-9]{3,5})", joined),
    (digits + "+", r"(\+{0,2}[0-9]{2,4}[- \u00a0][0-9]{3,4}[- \u00a0]?[0-9]{3,5})", joined),
    ('"&', "(\"|&quot;)[A-Za-z0-9$]", constant("``")),
    ('"&', "(\")", constant("''")),
    ("&", "(&quot;)", constant("''")),
    ("&", "(&(?i:quot);)", plain),
    ("<>:;=", r"([<>]?[:;=][-o*']?[()DdPpO@{\\\[\]|])[^A-Za-z0-9]", joined),
    ("^-=<>~'x", r"([-^x=~<>']_[-^x=~<>'])", joined),
    ("(", r"(\((?:[-^x=~<>'][._]?[-^x=~<>']|[\^x=~<>']-[\^x=~<>'`])\))", joined),
    ("-", "(-{3,4})", constant("--")),
    ("-", "(-+)", plain),
    (".\u2026\u0085", r"(\.{3,5}|(?:\.[ \u00a0]){2,4}\.|[\u2026\u0085])", constant("...")),
    ("@#_", "(@+|#+|_+)", plain),
    ("\\*", r"((?:\\\*)+|\*+)", plain),
    (",;:\u3001", "([,;:\u3001])", plain),
    ("?!", "([?!]+)", plain),
    (".=/", "([.=/])", plain),
    (A + digits, f"({HYPHENS})", plain),
    (A + digits, rf"({HYPHENS}\.)[,;:\u3001]", plain),
    (A + digits + LETTER + DIGIT + "\u00ad", f"({THINGS})", plain),
    (A + digits + LETTER + DIGIT + "\u00ad", rf"({THINGS}\.)[,;:\u3001]", plain),
    (A, f"({CAPITALS_JOINED})", _amp),
    (A, rf"({CAPITALS_JOINED}\.)[,;:\u3001]", _amp),
    ("'", r"(')[A-Za-z][^ \t\n\u00a0]", constant("`")),
    (Q, f"({CLITIC})", straight),
    ("nN", f"([nN]{ANY_APOS}[tT])", straight),
    ("'`", "('{1,2}|`{1,2})", plain),
    (Q[1:], f"({APOS})", straight),
    (QUOTES, f"([{QUOTES}]{{1,2}})", lambda text: "".join(QUOTE_FORMS.get(c, c) for c in text)),
    ("<>", "(<<|>>)", plain),
    ("".join(c for c in punctuation if c not in ".,"), "([+%&~^|\\\\<>*])", plain),
    (SYMBOL + SUPERS + SUBS + "\u207a\u207b\u207c\u207d\u207e\u208a\u208b\u208c\u208d\u208e\u2044\u201f",
     f"([{SYMBOL}\u207a\u207b\u207c\u207d\u207e\u208a\u208b\u208c\u208d\u208e\u2044\u201f])", as_written),
]  # fmt: skip

SPACES = re.compile(f"[ \t\u00a0{SPACE}]+")


ALPHABET = printable[:95] + NAMED + LETTER + MARK + DIGIT + SYMBOL + SPACE + DELETED + ASTRAL


@cache
def compile_rules() -> dict[str, list[tuple[Callable, Render]]]:
    """For each character of the alphabet the rules that can begin with it, in order.

    Takes some tens of milliseconds, once, at the first odd word.
    """
    table: dict[str, list[tuple[Callable, Render]]] = {}
    for first, pattern, render in RULES:
        match = re.compile(pattern).match
        for char in dict.fromkeys(first or ALPHABET):
            table.setdefault(char, []).append((match, render))
    return table
