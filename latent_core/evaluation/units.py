"""Units by all their names, and which are so usual that a question may have named them already."""

import re

_WORDS = {
    "mm": "millimeter millimetre",
    "cm": "centimeter centimetre 厘米",
    "dm": "decimeter decimetre",
    "m": "meter metre 米",
    "km": "kilometer kilometre 千米 公里",
    "in": "inch inches",
    "ft": "foot feet",
    "yd": "yard",
    "mi": "mile",
    "mg": "milligram",
    "g": "gram gramme 克",
    "kg": "kilogram kilogramme kilo 千克 公斤",
    "lb": "pound",
    "oz": "ounce",
    "ml": "milliliter millilitre",
    "l": "liter litre",
    "ms": "millisecond",
    "s": "second sec 秒",
    "min": "minute 分钟",
    "h": "hour hr 小时",
    "day": "天",
    "week": "周",
    "month": "",
    "year": "yr 年",
    "°": "degree deg 度",
    "°c": "°celsius",
    "°f": "°fahrenheit",
    "rad": "radian",
    "$": "dollar usd 美元",
    "€": "euro eur",
    "cent": "",
}
_SYMBOL = {word: symbol for symbol, words in _WORDS.items() for word in (symbol, *words.split())}
_SYMBOL |= {f"{word}s": symbol for word, symbol in _SYMBOL.items() if len(word) > 1 and word.isascii()}
_AFTER_MEGA = {"", "w", "wh", "hz", "pa", "j", "v", "a", "n", "ev", "b", "bps", "bit", "ω"}
_AREA = re.compile(r"(square|sq\.?|cubic|cu\.?|平方|立方)\s*([^\W\d_]+)")
_POWER = re.compile(r"([^\W\d_]+)\s*\^?\{?([23])\}?")


def unit(text: str, *, apart: bool) -> tuple[str, bool, bool]:
    """The symbol of a unit, whether it is one of these, and whether a question may have named it.

    A single letter may be more than a unit unless it stands `apart` from its number: an iPhone 5s, a room 3m.
    """
    text = " ".join(text.split())
    key = re.sub(r"\s*([/^·*])\s*", r"\1", text.casefold())
    key = re.sub(r"^(?:°|degrees?|deg\.?) ?(celsius|fahrenheit|c|f)$", r"°\1", key)
    if text.startswith("M") and (key[1:] in _AFTER_MEGA or text == "Mg"):
        return f"M{key[1:]}", False, False
    power = ""
    if match := _AREA.fullmatch(key):
        power, key = "2" if match.group(1) in ("square", "sq", "sq.", "平方") else "3", match.group(2)
    elif match := _POWER.fullmatch(key):
        key, power = match.groups()
    symbol = _SYMBOL.get(key)
    is_unit = symbol is not None
    usual = is_unit and (apart or len(key) > 1 or not key.isalpha() or not key.isascii())
    return (symbol or key) + (f"^{power}" if power else ""), is_unit, usual
