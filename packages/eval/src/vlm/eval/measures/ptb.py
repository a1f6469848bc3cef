"""Penn Treebank tokens of Stanford CoreNLP 3.4.1, as caption metrics use them, without Java.

    words(["A cat, isn't it?"])      # [["a", "cat", "is", "n't", "it"]]

A table of rules in order of rank: at each place the rule with the longest match (context included) wins, then the first
rule. Literals match in any case, character classes in the case they are written in. Compared with the Java program on
Latin text (see the tests); scripts that its character tables of 2014 did not know may be split elsewhere.
"""

from collections.abc import Callable
from functools import cache

import regex

PUNCTUATION = frozenset(["''", "'", "``", "`", ".", "?", "!", ",", ":", "-", "--", "...", ";"])
"""Dropped after tokenizing. The published list also has brackets, in capitals, which lower-case tokens never match."""

_QUOTES = {"‘": "`", "‛": "`", "‹": "`", "’": "'", "›": "'", "“": "``", "«": "``", "”": "''", "»": "''"}
_QUOTES |= {"\x91": "`", "\x92": "'", "\x93": "``", "\x94": "''"}
_BRACKETS = {"(": "-LRB-", ")": "-RRB-", "{": "-LCB-", "}": "-RCB-", "[": "-LSB-", "]": "-RSB-"}
_SYMBOLS = {"&amp;": "&", "&lt;": "<", "&gt;": ">", "¢": "cents", "£": "#", **dict.fromkeys("\x80¤₠€", "$")}
_FRACTIONS = {"¼": "1/4", "½": "1/2", "¾": "3/4", "⅓": "1/3", "⅔": "2/3"}
_JOINED = ("gonna", "gotta", "lemme", "gimme", "wanna")
_PLAIN = regex.compile(r"([A-Za-z]+) ")
"""A word that no rule but the first two can split: most words of a caption, read without trying every rule."""

LONGEST = 1000
"""Characters that a rule looks at: tokens with their context are shorter, and a search stays short."""

NEWLINE = "\n"

How = Callable[[str], tuple[str, int]]
"""function(matched text) -> the token ("": none), and how many characters it consumes."""


def _whole(text: str) -> tuple[str, int]:
    return text, len(text)


def _skip(text: str) -> tuple[str, int]:
    return "", len(text)


def _less(n: int) -> How:
    return lambda text: (text[:-n], len(text) - n)


def _abbreviation(text: str) -> tuple[str, int]:
    return text, len(text) - 1  # its period also ends the sentence, so it is read twice


def _acronym(text: str) -> tuple[str, int]:
    return (text[:1], 1) if len(text) == 2 else (text, len(text) - 1)


def _quote(left: bool) -> How:
    def how(text: str) -> tuple[str, int]:
        mark = "`" if left else "'"
        out = text.replace("&apos;", "'").replace("'", mark).replace("&quot;", '"').replace('"', 2 * mark)
        return "".join(_QUOTES.get(c, c) for c in out), len(text)

    return how


def _mapped(table: dict[str, str]) -> How:
    return lambda text: (table.get(text.lower()) or "".join(table.get(c, c) for c in text), len(text))


def _round(text: str) -> tuple[str, int]:
    return text.replace(" ", "\xa0").replace("(", "-LRB-").replace(")", "-RRB-"), len(text)


def _spaced(text: str) -> tuple[str, int]:
    return text.replace(" ", "\xa0"), len(text)


def _soft(text: str) -> tuple[str, int]:
    return text.replace("\xad", "") or "-", len(text)


def _ampersand(text: str) -> tuple[str, int]:
    return regex.sub("(?i)&amp;", "&", text), len(text)


def _as(token: str) -> How:
    return lambda text: (token, len(text))


def _i(literals: str) -> str:
    """Make a pattern of literals match in any case."""
    return str(regex.sub("[A-Za-z]", lambda m: f"[{m[0].lower()}{m[0].upper()}]", literals))


def _rules() -> list[tuple[str, str, How]]:
    """Return (pattern, what must follow, how) in order of rank."""
    space, line = r"[ \t\xa0\u2000-\u200a\u3000]", r"(?:\r?\n|[\r\u2028\u2029\x0b\x0c\x85])"
    gap = rf"(?:{space}|{line})"
    letter = r"[\p{L}\xad\u02c2-\u02df\u02e5-\u02ff]|(?![\u20d0-\u20ff])\p{M}"
    letter = f"(?:{letter}|&[aeiouAEIOU](?:{_i('acute|grave|uml')});)"
    plain, digit = r"[\p{L}\p{Nd}]", r"\p{Nd}"
    either = f"(?:{letter}|{digit})"
    word = rf"{letter}{either}*(?:[.!?]{letter}{either}*)*"
    apos = f"(?:['\x92’]|{_i('&apos;')})"
    tick = f"(?:{apos}|[`\x91‘‛])"
    clitic, negation = f"{apos}(?:[msdMSD]|{_i('re|ve|ll')})", f"[nN]{tick}[tT]"
    tag = r"[A-Za-z][A-Za-z0-9_:.\-]*"
    value = r"""(?:'[^']*'|"[^"]*")"""
    markup = rf"<(?:[!?][A-Za-z\-][^>\r\n]*|{tag}(?: +(?:{tag}|{tag} *= *{value}))* */?|/{tag}) *>"
    number = rf"(?:{digit}+|{digit}*(?:[.:,\xad٫٬]{digit}+)+)"
    thing = f"(?:[dDoOlL]{tick}{plain})?{plain}+"
    spelled = _i(r"(?:Canada|Sino|Korean|EU|Japan|non)-U\.S|U\.S\.-(?:U\.K|U\.S\.S\.R)")
    initials = rf"(?:[A-Za-z](?:\.[A-Za-z])*|{spelled})"
    hyphenated = rf"[A-Za-z0-9][A-Za-z0-9.,\xad]*(?:-(?:[A-Za-z0-9\xad]+|(?:[A-Za-z](?:\.[A-Za-z])+|{spelled})\.))+"
    months = "jan|feb|mar|apr|jun|jul|aug|sept?|oct|nov|dec|mon|tues?|wed|thu|thurs|fri"
    states = "ala|ariz|calif|colo|conn|ct|dak|fla|ga|ind|kans?|ky|md|mich|minn|mo|mont|neb|nev|okla|penn|tenn|va|vt"
    firms = "wisc?|wyo|inc|cos?|corp|ltd|plc|rt|bancorp|bhd|assn|univ|intl|sys|tel|est|ext|sq|jr|sr|bros|blvd|rd|esq"
    cased = "A[zZ]|A[rR][kK]|D[eE][lL]|I[lL]{2}|L[aA]|M[aA][sS]{2}|M[iI][sS]{2}|O[rR][eE]|P[aA]|T[eE][xX]|W[aA][sS][hH]"
    others = r"(?:ed|ph)\.d|etc|al|seq|bldg"
    ends = rf"(?:{_i('|'.join([months, states, firms, others]))}|{cased}|[pP][pP]?[tT][yes][sS]?)\."
    titles = "mr|mrs|ms|drs?|profs?|sens?|reps?|attys?|lt|col|gen|messrs|govs?|adm|rev|maj|sgt|cpl|pvt|capt|ste?|ave"
    titles += "|pres|lieut|hon|brig|co?mdr|pfc|spc|supts?|det|mt|ft|adj|adv|asst|assoc|ens|insp|mlle|mme|msgr|sfc"
    goes_on = _i(rf"{titles}|vs|alex|wm|jos|cie|a\.k\.a|cf|treas|ph|invt|elec|natl|dept")
    goes_on = f"(?:{goes_on}|M[iI][sS]{{2}}|[mM][ft][gG]|{initials})"
    starters = "about according additionally after an a as at but earlier he her here however if in it last many more"
    starters += " mr\\. ms\\. now once one other our she since so some such that the their then there these they this"
    starters += " we when while what yet you"
    starter = "|".join(f"{w[0].upper()}{_i(w[1:])}" for w in starters.split())
    own = [f"{apos}[nN]{apos}?", f"[lLdDjJ]{apos}", f"(?:{_i('dunkin|somethin|ol')}){apos}"]
    own += [f"{apos}(?:{_i('em|till?|cause')})", f"{apos}[2-9]0[sS]", f"[oO]{tick}[oO]"]
    own += [rf"[A-HJ-XZn]{tick}\p{{L}}{{2,}}", rf"\p{{L}}+[aeiouyAEIOUY]{tick}[aeiouA-Z]\p{{L}}*"]
    own += [_i(r"cont'd\.?|'twas|nor'easter|c'mon|e'er|s'mores|ev'ry|li'l|nat'l")]
    stop, short = r"[^ \t\n\f\r\"<>|(){}]", r"[^ \t\n\f\r\"<>|.!?(){},-]"
    site = rf"(?:{_i('www')}\.(?:[^ \t\n\f\r\"<>|.!?(){{}},]+\.)+[a-zA-Z]{{2,4}}"
    site += rf"|(?:[^ \t\n\f\r\"`'<>|.!?(){{}},-_$]+\.)+(?:{_i('com|net|org|edu')}))(?:/[^ \t\n\f\r\"<>|()]+{short})?"
    mail = r"[a-zA-Z0-9][^ \t\n\f\r\"<>|()\xa0{}]*@(?:[^ \t\n\f\r\"<>|(){}.\xa0]+\.)*[^ \t\n\f\r\"<>|(){}.\xa0]+"
    suffixes = "bat|bmp|c|class|cgi|cpp|dll|docx?|exe|gif|gz|h|html?|jar|java|jpe?g|mov|mp3|pdf|php|pl|png|ppt|ps|py"
    suffixes = _i(suffixes + "|sql|tar|txt|wav|x|xml|zip")
    slashed = r"[A-Za-z0-9]+(?:-[A-Za-z]+){0,2}"
    start = r"\([0-9]{2,3}\)[ \xa0]?|(?:\+\+?)?(?:[0-9]{2,4}[- \xa0])?[0-9]{2,4}[- \xa0]"
    phone = rf"(?:{start})[0-9]{{3,4}}[- \xa0]?[0-9]{{3,5}}"
    phone += r"|(?:(?:\+\+?)?[0-9]{2,4}\.)?[0-9]{2,4}\.[0-9]{3,4}\.[0-9]{3,5}"
    asian = r"[\^x=~<>]\.\[\^x=~<>]|[-^x=~<>']_[-^x=~<>']|\([-^x=~<>'][_.]?[-^x=~<>']\)|\([\^x=~<>']-[\^x=~<>'`]\)"
    curly = "[`‘’‚‛“”\x91\x92\x93\x94„‟‹›«»]"
    symbols = "[+%&~^|\\\\¦§¨©¬®¯°-³´-º×÷‖‗†-‣‰-‸※‾-⁂⁄⁺-⁾₊-₎℀-⅏←-⇿∀-⯿〒・！-／：-＠［-｀｛-･]"
    joined, comma = rf"[A-Z]+(?:(?:[+&]|{_i('&amp;')})[A-Z]+)+", r"[,;:\u3001]"
    return [
        (r"[cC]\+\+|[cCfF]#", "", _whole),
        (_i("cannot|'twas"), "", _less(3)),
        (_i("|".join(["'tis", *_JOINED])), "", _less(2)),
        (markup, "", _spaced),
        (f"{_i('&(?:md|mdash|ndash);')}|[\x96\x97–—―]", "", _as("--")),
        (_i("&amp;"), "", _mapped(_SYMBOLS)),
        (rf"&(?:{_i('ht|tl|ur|lr|qc|ql|qr|odq|cdq')}|#[0-9]+);", "", _whole),
        (word, clitic, _soft),
        (r"[A-Za-z\xad]*[A-MO-Za-mo-z]\xad*", negation, _soft),
        (word, "", _soft),
        ("|".join(own), "", _whole),
        (f"[yY]{apos}", r"\p{L}", _whole),
        (rf"{_i('https?')}://{stop}+{short}|{site}|(?:{_i('&lt;')}|<)?{mail}(?:{_i('&gt;')}|>)?", "", _whole),
        (rf"@[a-zA-Z_][a-zA-Z_0-9]*|#{letter}+", "", _whole),
        (clitic, "[^A-Za-z]", _quote(False)),
        (negation, "[^A-Za-z]", _quote(False)),
        (rf"{digit}{{1,2}}[-/]{digit}{{1,2}}[-/]{digit}{{2,4}}", "", _whole),
        (rf"[-+]?{number}", "", _soft),
        (r"[⁺⁻₊₋]?(?:[⁰¹²³⁴-⁹]+|[₀-₉]+)", "", _whole),
        (rf"(?:{digit}{{1,4}}[- \xa0])?{digit}{{1,4}}(?:\\?/|⁄){digit}{{1,4}}", "", _spaced),
        ("[¼½¾⅓-⅞]", "", _mapped(_FRACTIONS)),
        (_i("-[rl][rcs]b-|c\\.d\\.s|pro-|anti-|s(?:&|&amp;)(?:p-500|ls)"), "", _mapped(_SYMBOLS)),
        (f"{_i('cap')}{apos}[nN]|[cC]{apos}{_i('est')}", "", _whole),
        (rf"{slashed}(?:\\?/{slashed}){{1,2}}", "", _whole),
        (r"[A-Z]*\$|#", "", _whole),
        ("[¢£¤¥\x80₠€؋฿₤￠￡￥￦]", "", _mapped(_SYMBOLS)),
        (rf"{initials}\.", f"{gap}+(?:{starter}|{markup}){gap}", _acronym),
        (_i(r"(?:ca|figs?|prop|nos?|art|bldg|pp|op)\."), f"{gap}?{digit}", _whole),
        (r"(?:[pP][tT][eyEY]|[cC][oO])\.", f"{space}(?:{_i('ltd|lim')})", _whole),
        (ends, rf"{gap}(?:{gap}|\p{{Lu}}|{markup})", _abbreviation),
        (ends, r"(?s:..)", _whole),
        (ends, "", _abbreviation),
        (rf"{goes_on}\.", "", _whole),
        (goes_on, space, _whole),
        (initials, gap, _whole),
        (f"{apos}[0-9][0-9]", gap, _whole),
        (rf"{either}+(?:\.{either}+)*\.(?:{suffixes})", f"(?:{gap}|[.?!,])", _whole),
        (rf"{word}\.", comma, _soft),
        (phone, "", _round),
        (f'"|{_i("&quot;")}', "[A-Za-z0-9$]", _quote(True)),
        (f'"|{_i("&quot;")}', "", _quote(False)),
        (f"<|>|{_i('&lt;|&gt;')}", "", _mapped(_SYMBOLS)),
        (r"[<>]?[:;=][-o*']?[()DPdpO\\{@|\[\]]", "[^A-Za-z0-9]", _round),
        (asian, "", _round),
        (r"[(){}\[\]]", "", _mapped(_BRACKETS)),
        ("-+", "", lambda text: ("--" if len(text) in (3, 4) else text, len(text))),
        (r"\.{3,5}|(?:\.[ \xa0]){2,4}\.|[\x85…]", "", _as("...")),
        (r"@+|#+|_+|\*+|(?:\\\*){1,3}", "", _whole),
        (comma, "", _whole),
        (r"[?!]+|[.¡¿\u037e\u0589؟\u3002=/]", "", _whole),
        (rf"{hyphenated}\.", comma, _soft),
        (hyphenated, "", _soft),
        (rf"{thing}(?:[-_\u058a‐‑]{thing})*\.", comma, _whole),
        (rf"{thing}(?:[-_\u058a‐‑]{thing})*", "", _whole),
        (rf"{joined}\.", comma, _ampersand),
        (joined, "", _ampersand),
        ("'", r"[A-Za-z][^ \t\n\r\xa0]", _quote(True)),
        (f"{clitic}|{negation}|{apos}|''|{curly}{{1,2}}", "", _quote(False)),
        (f"<<|>>|{symbols}", "", _whole),
        (rf"\0|{space}+|[\u200b\u200e\u200f\ufeff\x7f]|{_i('&nbsp;')}", "", _skip),
        (line, "", _as(NEWLINE)),
    ]


@cache
def _compiled() -> list[tuple["regex.Pattern[str]", How]]:
    # POSIX: the longest of all possible matches, as in a generated lexer
    return [(regex.compile(f"(?p)(?<t>{rule})(?:{ahead})"), how) for rule, ahead, how in _rules()]


@cache
def _starting_with(character: str) -> list[tuple["regex.Pattern[str]", How]]:
    return [(pattern, how) for pattern, how in _compiled() if pattern.match(character, partial=True)]


def lines(text: str) -> list[list[str]]:
    """Return the lower-case tokens of each line of `text`. What no rule matches is dropped, as published."""
    rows: list[list[str]] = [[]]
    at = 0
    while at < len(text):
        plain = _PLAIN.match(text, at)
        if plain and (word := plain[1].lower()) not in (*_JOINED, "cannot"):
            rows[-1].append(word)
            at = plain.end()
            continue
        best, used = -1, 1
        how: How = _skip
        for pattern, action in _starting_with(text[at]):
            found = pattern.match(text, at, at + LONGEST)
            if found and found.end() - at > best:
                best, used, how = found.end() - at, found.end("t") - at, action
        token, step = how(text[at : at + used])
        at += max(step, 1)
        if token == NEWLINE:
            rows.append([])
        elif token:
            rows[-1].append(token.lower())
    return rows


def words(captions: list[str]) -> list[list[str]]:
    """Return the words of each caption without punctuation.

    As published, all captions are read as one text, one line each: the start of a line can decide how the abbreviation
    before it is read.

    Raises:
        AssertionError: Markup swallowed a line end (as published).
    """
    rows = lines("\n".join(caption.replace("\n", " ") for caption in captions))
    assert len(rows) >= len(captions), "fewer lines than captions (as published)"
    kept = [[word for word in row if word not in PUNCTUATION] for row in rows[: len(captions)]]
    return [" ".join(row).split() for row in kept]  # a token may hold a space of its own
