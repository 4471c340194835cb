"""The token rules of the Penn Treebank tokenizer that the field's caption scores stand on, as data.

Written from observed behaviour, in words and by running the reference as a program; none of its code was
read. A rule is `(first characters, pattern, render)`. The pattern's group 1 is the token; what follows it in
the pattern is look-ahead that must be there but is not consumed. At each position the rule with the longest
match wins, the look-ahead counted; on a tie the rule that stands first. So the order below carries meaning.
Patterns run over the alphabet of `ptb_characters`; `render` turns the original characters into the token.
"""

import re
from collections.abc import Callable
from string import ascii_letters, digits, printable, punctuation

from nanocaption.metrics.ptb_characters import ASTRAL, DELETED, DIGIT, LETTER, MARK, NAMED, SPACE, SYMBOL

Render = Callable[[str], str]
Rule = tuple[str, str, Render]

# --- pieces of patterns -------------------------------------------------------------------------------------
ENTITY_LETTER = "&[aeiouAEIOU](?:[aA][cC][uU][tT][eE]|[gG][rR][aA][vV][eE]|[uU][mM][lL]);"
LET = f"(?:[A-Za-z{LETTER}{MARK}\u00ad]|{ENTITY_LETTER})"
DIG = f"[0-9{DIGIT}]"
LETDIG = f"(?:[A-Za-z0-9{LETTER}{MARK}{DIGIT}\u00ad]|{ENTITY_LETTER})"
WORD = rf"{LET}{LETDIG}*(?:[.!?]{LET}{LETDIG}*)*"
APOS = "(?:['\u2019\u0092]|&[aA][pP][oO][sS];)"
ANY_APOS = "(?:['\u2019\u0092`\u2018\u201b\u0091]|&[aA][pP][oO][sS];)"
WHITE = f"[ \t\n\u00a0{SPACE}]"
CLITIC = f"{APOS}(?:[sSmMdD]|[rR][eE]|[vV][eE]|[lL][lL])"
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
CAPITALS_JOINED = "[A-Z]+(?:(?:[&+]|&[aA][mM][pP];)[A-Z]+)+"
MAIL, MAIL_END = r"[^ \t\n\u00a0\"<>|(){}]", r"[^ \t\n\u00a0\"<>|(){}.]"
LOOSE_PATH = rf"(?:[^ \t\n\"<>|()]+{URL_END}|{ASTRAL})"
HOST = r"[^ \t\n\"<>|.!?(){},]+"
ACRONYM_US = (
    r"(?:(?:[Cc][Aa][Nn][Aa][Dd][Aa]-|[Ss][Ii][Nn][Oo]-|[Kk][Oo][Rr][Ee][Aa][Nn]-|[Ee][Uu]-"
    r"|[Jj][Aa][Pp][Aa][Nn]-|[Nn][Oo][Nn]-)?[Uu]\.[Ss]|[Uu]\.[Ss]\.-[Uu]\.(?:[Kk]|[Ss]\.[Ss]\.[Rr]))"
)
SENTENCE_STARTERS = (
    "About According Additionally After An A As At But Earlier He Her Here However If In It Last Many "
    "More Mr. Ms. Now Once One Other Our She Since So Some Such That The Their Then There These They This "
    "We When While What Yet You"
)


def _any_case(word: str) -> str:
    return "".join(f"[{c.upper()}{c.lower()}]" if c.isalpha() else re.escape(c) for c in word)


def _either(words: str | list[str]) -> str:
    """Alternatives in any case, longest first so that the first match is the longest."""
    words = words.split() if isinstance(words, str) else words
    return "(?:" + "|".join(map(_any_case, sorted(words, key=len, reverse=True))) + ")"


def _not_capitals(words: str) -> str:
    """Alternatives in lower case or with a capital first letter."""
    words = sorted(words.split(), key=len, reverse=True)
    return "(?:" + "|".join(f"[{word[0].upper()}{word[0]}]{word[1:]}" for word in words) + ")"


STARTER = "(?:" + "|".join(
    re.escape(w[0]) + _any_case(w[1:]) for w in sorted(SENTENCE_STARTERS.split(), key=len, reverse=True)
) + ")"
SENTENCE_AHEAD = rf"{WHITE}+(?:{STARTER}|{TAG}){WHITE}"

ABBREVIATIONS = (
    "adj adm adv al ala alex apr ariz assn assoc asst atty attys aug ave bancorp bhd bldg blvd brig bros "
    "calif capt cf cie cmdr co col colo comdr conn corp cos cpl ct dak dec dept det dr drs elec ens esq "
    "est etc ext feb fla fri ft ga gen gov govs hon inc ind insp intl invt jan jos jr jul jun kan kans ky "
    "lieut lt ltd maj mar md messrs mich minn mlle mme mo mon mont mr mrs ms msgr mt natl neb nev nov oct "
    "okla penn pfc ph plc pres prof profs pvt rd rep reps rev rt sen sens sep sept seq sfc sgt spc sq sr "
    "st ste supt supts sys tel tenn thu thurs treas tue tues univ va vs vt wed wis wisc wm wyo"
)
CAPITAL_ABBREVIATIONS = "ark az del ill la mass miss ore pa tex wash"
FIRMS = "pte ptes pty ptys ppte ppty"
SMALL_ABBREVIATIONS = "mfg mtg " + FIRMS
BEFORE_NUMBER = "ca figs fig prop nos no art bldg pp op"
CAPITALISED = "(?:" + "|".join(c[0].upper() + _any_case(c[1:]) for c in CAPITAL_ABBREVIATIONS.split()) + ")"
# Of these the period is kept before one letter ("etc.x" is two tokens, "mr.x" one).
SENTENCE_FINAL = _either(
    "al ala apr ariz assn aug bancorp bhd bldg blvd bros calif co colo conn corp cos ct dak dec esq est "
    "etc ext feb fla fri ga inc ind intl jan jr jul jun kan kans ky ltd mar md mich minn mo mon mont neb "
    "nev nov oct okla penn plc rd rt sep sept seq sq sr sys tel tenn thu thurs tue tues univ va vt wed "
    "wis wisc wyo ph.d ed.d"
) + "|" + CAPITALISED + "|" + _not_capitals(FIRMS)
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
    "\u0091": "`", "\u2018": "`", "\u201b": "`", "\u2039": "`", "\u0092": "'", "\u2019": "'", "\u203a": "'",
    "\u0093": "``", "\u201c": "``", "\u00ab": "``", "\u0094": "''", "\u201d": "''", "\u00bb": "''",
}  # fmt: skip


def _quotes(text: str) -> str:
    return "".join(QUOTE_FORMS.get(c, c) for c in text)


QUOTES = "`\u201a\u201e" + "".join(QUOTE_FORMS)
FRACTIONS = {"\u00bc": "1/4", "\u00bd": "1/2", "\u00be": "3/4", "\u2153": "1/3", "\u2154": "2/3"}
BRACKETS = {"(": "-lrb-", ")": "-rrb-", "[": "-lsb-", "]": "-rsb-", "{": "-lcb-", "}": "-rcb-"}

# --- the rules ----------------------------------------------------------------------------------------------
A = ascii_letters
L = ascii_letters + LETTER + MARK + "\u00ad&"
N = digits + DIGIT
Q = "'\u2019\u0092&"
DASHES = "\u2013\u2014\u2015\u0096\u0097"
SCRIPT_SIGNS = "\u207a\u207b\u208a\u208b"
SUPERS = "\u00b9\u00b2\u00b3\u2070\u2074\u2075\u2076\u2077\u2078\u2079"
SUBS = "\u2080\u2081\u2082\u2083\u2084\u2085\u2086\u2087\u2088\u2089"

RULES: list[Rule] = [
    ("cCfF", r"([cC]\+\+|[cCfF]#)", plain),
    # cannot, 'tis and their like: the first part here, the rest is a word of its own.
    ("cC", r"([cC][aA][nN])[nN][oO][tT]", plain),
    ("'", r"('[tT])(?:[wW][aA][sS]|[iI][sS])", plain),
    ("gGwW", rf"({_either('gon wan')})[nN][aA]", plain),
    ("gG", r"([gG][oO][tT])[tT][aA]", plain),
    ("lLgG", rf"({_either('lem gim')})[mM][eE]", plain),
    ("<", rf"({TAG})", spaces_kept),
    (DASHES + "&", f"([{DASHES}]|{_either('&mdash; &ndash; &md;')})", constant("--")),
    ("&", f"({_any_case('&amp;')})", constant("&")),
    ("&", rf"(&#[0-9]+;|{_either('&ht; &tl; &ur; &lr; &qc; &ql; &qr; &odq; &cdq;')})", plain),
    (L, rf"({WORD}){CLITIC}", plain),
    (A + "\u00ad", rf"({PLAIN_NOT_N})[nN]{ANY_APOS}[tT]", plain),
    (A, rf"((?:{SENTENCE_FINAL})\.)(?:[{SIGN}][^{SIGN}]|-[{SIGN}])", plain),
    (L, f"({WORD})", plain),
    (Q, f"({APOS}[nN]{APOS}?)", as_written),
    ("lLdDjJ", f"([lLdDjJ]{APOS})", as_written),
    ("dDsSoO", f"((?:{_either('dunkin somethin ol')}){APOS})", as_written),
    (Q, f"({APOS}[eE][mM])", as_written),
    (A, f"([A-HJ-XZn]{ANY_APOS}{ALPHA}{{2,}})", as_written),
    (Q, f"({APOS}[2-9]0[sS])", as_written),
    (Q, f"({APOS}[tT][iI][lL][lL]?)", as_written),
    (A + LETTER, f"({ALPHA}+[aeiouyAEIOUY]{ANY_APOS}[aeiouA-Z]{ALPHA}*)", as_written),
    (Q, f"({APOS}{_any_case('cause')})", as_written),
    (A, "(" + "|".join(
        _any_case(a) + APOS + _any_case(b) for a, b in (
            ("cont", "d"), ("nor", "easter"), ("c", "mon"), ("e", "er"), ("s", "mores"), ("ev", "ry"),
            ("li", "l"), ("nat", "l"), ("cap", "n"), ("c", "est"))) + ")", as_written),
    ("oO", f"([oO]{ANY_APOS}[oO])", as_written),
    ("yY", f"([yY]{APOS}){ALPHA}", as_written),
    ("hH", rf"([hH][tT][tT][pP][sS]?:\/\/{PATH})", as_written),
    ("wW", rf"([wW]{{3}}\.(?:{HOST}\.)+[A-Za-z]{{2,4}}(?:\/{LOOSE_PATH})?)", as_written),
    (None, rf"((?:{DOTTED}\.)+{_either('com net org edu')}(?:\/{LOOSE_PATH})?)", as_written),
    (A + digits + "<&",
     rf"((?:<|&[lL][tT];)?[A-Za-z0-9]{MAIL}*@{MAIL_END}+(?:\.{MAIL_END}+)*(?:>|&[gG][tT];)?)", as_written),
    ("@", "(@[A-Za-z_][A-Za-z_0-9]*)", as_written),
    ("#", f"(#{LET}+)", as_written),
    (Q, f"({CLITIC})[^A-Za-z]", straight),
    ("nN", f"([nN]{ANY_APOS}[tT])[^A-Za-z]", straight),
    (N, rf"({DIG}{{1,2}}[-/]{DIG}{{1,2}}[-/]{DIG}{{2,4}})", as_written),
    (N + "+-.,:\u00ad\u066b\u066c", f"([-+]?(?:{DIG}*(?:[.,:\u00ad\u066b\u066c]{DIG}+)+|{DIG}+))", plain),
    (SUPERS + SUBS + SCRIPT_SIGNS, f"([{SCRIPT_SIGNS}]?(?:[{SUPERS}]+|[{SUBS}]+))", as_written),
    (N, rf"((?:{DIG}{{1,4}}[- \u00a0])?{DIG}{{1,4}}(?:\\?\/|\u2044){DIG}{{1,4}})", joined),
    ("".join(FRACTIONS), "([" + "".join(FRACTIONS) + "])", FRACTIONS.__getitem__),
    ("-", "(-[lrLR][rscRSC][bB]-)", plain),
    ("pPaA", f"({_either('pro- anti-')})", plain),
    ("sS", r"([sS]&[pP]-500|[sS]&[lL][sS])", plain),
    (A + digits, r"([A-Za-z0-9]+(?:-[A-Za-z]+){0,2}(?:\\?\/[A-Za-z0-9]+(?:-[A-Za-z]+){0,2}){1,2})", plain),
    (A + "$#", r"([A-Z]*\$|#)", plain),
    ("\u00a2", "(\u00a2)", constant("cents")),
    ("\u00a3", "(\u00a3)", constant("#")),
    ("\u20ac\u00a4\u20a0\u0080", "([\u20ac\u00a4\u20a0\u0080])", constant("$")),
    # Acronyms at the end of a sentence: the period of "plan B. The" is split off, that of "the U.S. The" is
    # not.
    (A, rf"([A-Za-z])\.{SENTENCE_AHEAD}", plain),
    (A, rf"((?:[A-Za-z](?:\.[A-Za-z])+|{ACRONYM_US})\.){SENTENCE_AHEAD}", plain),
    (A, rf"({_either(BEFORE_NUMBER)}\.){WHITE}?{DIG}", plain),
    (A, rf"((?:{_either(ABBREVIATIONS)}|{CAPITALISED}|{_not_capitals(SMALL_ABBREVIATIONS)})\.)", plain),
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
    ("&", "(&[qQ][uU][oO][tT];)", plain),
    ("&", f"({_any_case('&nbsp;')})", constant("")),
    ("&", "(&[lL][tT];)", constant("<")),
    ("&", "(&[gG][tT];)", constant(">")),
    ("<>:;=", r"([<>]?[:;=][-o*']?[()DdPpO@{\\\[\]|])[^A-Za-z0-9]", joined),
    ("^-=<>~'x", r"([-^x=~<>']_[-^x=~<>'])", joined),
    ("(", r"(\((?:[-^x=~<>'][._]?[-^x=~<>']|[\^x=~<>']-[\^x=~<>'`])\))", joined),
    ("".join(BRACKETS), r"([\[\](){}])", BRACKETS.__getitem__),
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
    (QUOTES, f"([{QUOTES}]{{1,2}})", _quotes),
    ("<>", "(<<|>>)", plain),
    ("".join(c for c in punctuation if c not in ".,"), "([+%&~^|\\\\<>*])", plain),
    (SYMBOL + SUPERS + SUBS + "\u207a\u207b\u207c\u207d\u207e\u208a\u208b\u208c\u208d\u208e\u2044\u201f",
     f"([{SYMBOL}\u207a\u207b\u207c\u207d\u207e\u208a\u208b\u208c\u208d\u208e\u2044\u201f])", as_written),
]  # fmt: skip

SPACES = re.compile(f"[ \t\u00a0{SPACE}]+")


ALPHABET = printable[:95] + NAMED + LETTER + MARK + DIGIT + SYMBOL + SPACE + DELETED + ASTRAL


def rules_by_first_character() -> dict[str, list[tuple[Callable, Render]]]:
    """For each character of the alphabet the rules that can begin with it, in order."""
    table: dict[str, list[tuple[Callable, Render]]] = {}
    for first, pattern, render in RULES:
        match = re.compile(pattern).match
        for char in dict.fromkeys(first or ALPHABET):
            table.setdefault(char, []).append((match, render))
    return table
