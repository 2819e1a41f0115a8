"""Which column plays which role, judged by its name and its first values; and column names fit for templates."""

from __future__ import annotations

import fnmatch
import keyword
import re
import unicodedata
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import pyarrow as pa

from llmrec_core.data._values import parse_numbers, parse_times
from llmrec_core.errors import DataError, InputError

Kind = Literal["interactions", "items", "users"]
KINDS: tuple[Kind, ...] = ("interactions", "items", "users")

#: Names by role, most telling first; compared in lower case without spaces, dashes and underscores.
_NAMES: dict[str, str] = {
    "user_id": "userid user uid customerid customer custid cid memberid member reviewerid reviewer visitorid visitor "
    "accountid account clientid client profileid playerid listenerid readerid viewerid studentid subscriberid buyerid "
    "shopperid userno usernumber useridx username sessionid 用户id 用户编号 用户 用户号 会员id 会员编号 会员 顾客id "
    "顾客编号 顾客 客户id 客户编号 客户 买家id 买家 读者id 读者 用户名",
    "item_id": "itemid item iid movieid movie filmid film productid product parentasin asin sku skuid goodsid goods "
    "bookid book isbn isbn13 isbn10 trackid track songid song artistid videoid video articleid article newsid gameid "
    "game appid poiid venueid businessid recipeid courseid showid seriesid animeid adid docid contentid listingid "
    "merchandiseid itemno itemidx productno 物品id 物品编号 物品 商品id 商品编号 商品 电影id 电影编号 电影 影片id 影片 "
    "图书id 图书编号 图书 书籍id 书籍 歌曲id 歌曲 视频id 视频 课程id 文章id 新闻id 产品id 产品编号 产品",
    "rating": "rating ratings score scores stars star starrating overall ratingvalue userrating reviewscore "
    "reviewrating grade vote preference 评分 打分 分数 得分 星级 评级",
    "timestamp": "timestamp unixreviewtime unixtime unixtimestamp epoch time datetime ts eventtime ratedat ratingtime "
    "watchedat viewedat createdat purchasedat clickedat boughtat lastwatched date eventdate ratingdate reviewtime "
    "reviewdate purchasedate orderdate transactiondate invoicedate createddate 时间戳 时间 日期 评分时间 购买时间 "
    "下单时间 创建时间 交互时间 观看时间 浏览时间",
    "title": "title movietitle filmtitle itemtitle producttitle booktitle name itemname moviename productname bookname "
    "gamename songname trackname articletitle originaltitle displayname 标题 名称 片名 书名 电影名 电影名称 商品名 "
    "商品名称 商品标题 歌名 题目",
    "description": "description desc itemdescription productdescription overview summary plot synopsis abstract blurb "
    "about details 描述 简介 介绍 摘要 内容简介 商品描述 剧情简介",
    "category": "category categories genre genres class maincategory itemcategory productcategory subcategory tags "
    "tag topics topic type department 类别 分类 类型 标签 品类 体裁 题材",
}
ROLES: tuple[str, ...] = tuple(_NAMES)
_RANK: dict[str, dict[str, int]] = {
    role: {name: rank for rank, name in enumerate(names.split())} for role, names in _NAMES.items()
}
ROLES_OF: dict[Kind, tuple[str, ...]] = {
    "interactions": ROLES,
    "items": ("item_id", "title", "description", "category"),
    "users": ("user_id",),
}
_USERISH = frozenset(
    [
        "age",
        "agegroup",
        "gender",
        "sex",
        "occupation",
        "job",
        "zipcode",
        "zip",
        "city",
        "country",
        "birthday",
        "birthyear",
        "membership",
        "年龄",
        "性别",
        "职业",
        "城市",
    ]
)
_EVENTFUL = frozenset(("name", "displayname", "type", "class", "tag", "tags", "department"))
_USER_FILE = re.compile(r"(?i)user|member|customer|client|profile|用户|会员|顾客|客户")
_ITEM_FILE = re.compile(r"(?i)item|movie|film|product|book|game|song|track|catalog|商品|物品|电影|图书|产品")


@dataclass(frozen=True)
class Corrections:
    """What a person said against the guesses.

    ``roles``: (kind or None, role, column; "" takes the role away). ``files``: (option, file name) -> value, where an
    option may be a role and the value its column. ``options``: what holds for the whole import; ``mask:COLUMN`` names
    what is masked in a text column.
    """

    roles: tuple[tuple[Kind | None, str, str], ...] = ()
    files: Mapping[tuple[str, str], str] = ()  # type: ignore[assignment]
    options: Mapping[str, str] = ()  # type: ignore[assignment]

    def option(self, option: str, file_name: str) -> str | None:
        """What was said about one table; its whole name speaks before its bare name, that before a pattern."""
        said = {place: value for (known, place), value in dict(self.files).items() if known == option}
        bare = file_name.rpartition("/")[2]
        for name in (file_name, bare):
            if name in said:
                return said[name]
        return next((said[place] for place in reversed(list(said)) if names_file(place, file_name)), None)

    def roles_of(self, file_name: str) -> list[tuple[str, str]]:
        """(role, column) said about this one table."""
        found = ((role, self.option(role, file_name)) for role in dict.fromkeys(o for o, _ in dict(self.files)))
        return [(role, column) for role, column in found if role in ROLES and column is not None]


def names_file(pattern: str, file_name: str) -> bool:
    """Whether a name or a pattern such as ``ratings-*.csv`` means this table, by its whole or its bare name."""
    bare = file_name.rpartition("/")[2]
    return any(pattern == name or fnmatch.fnmatchcase(name, pattern) for name in (file_name, bare))


_FILE_OPTIONS = (
    "kind",
    "encoding",
    "separator",
    "header",
    "header_row",
    "layout",
    "missing",
    "table",
    "leave_out",
    "part",
)
#: Options of the whole import and the words they take; () where the reader of the option judges.
_OPTIONS: dict[str, tuple[str, ...]] = {
    "duplicates": ("last", "mean", "count", "keep"),
    "decimal": ("auto", "point", "comma"),
    "day_first": ("auto", "yes", "no"),
    "time_unit": (),
    "timezone": (),
    "zero": ("rating", "unrated", "ask"),
    "missing_time": ("refuse", "drop-all", "keep-order"),
    "scale": (),
    "pseudonymise": ("yes", "no"),
}
_FILE_WORDS: dict[str, tuple[str, ...]] = {
    "kind": KINDS,
    "header": ("yes", "no"),
    "leave_out": ("yes", "no"),
    "part": ("train", "valid", "test"),
}


def parse_mapping(mapping: Mapping[str, str] | Sequence[str]) -> Corrections:
    """Reads ``role=column``, ``items:title=movie_title``, ``rating:FILE=mark``, ``kind:FILE=items``,
    ``separator:FILE=;``, ``duplicates=last`` and the like. FILE may be a pattern; "?" in it stands for "=".

    Raises:
        InputError: an entry has no "=", or an unknown role, kind or option.
    """
    entries = [f"{key}={value}" for key, value in mapping.items()] if isinstance(mapping, Mapping) else list(mapping)
    roles: list[tuple[Kind | None, str, str]] = []
    files: dict[tuple[str, str], str] = {}
    options: dict[str, str] = {}
    for entry in entries:
        left, equals, column = entry.partition("=")
        prefix, colon, rest = left.partition(":")
        prefix = prefix.strip().lower()
        if colon and prefix in _FILE_OPTIONS:
            # A file name may hold "=", a column name too: each side is cut where it cannot hurt.
            left, equals, column = entry.rpartition("=")
            rest = left.partition(":")[2]
        if not equals:
            raise InputError(f"{entry[:80]!r} is not of the form role=column.", where="map", fix=_MAP_HELP)
        if colon and prefix in _FILE_OPTIONS:
            if prefix in _FILE_WORDS and column.strip().lower() not in _FILE_WORDS[prefix]:
                fix = f"Use {' or '.join(_FILE_WORDS[prefix])}."
                raise InputError(f"unknown {prefix} {column[:40]!r}.", where="map", fix=fix)
            files[prefix, rest.strip()] = column if prefix == "separator" else column.strip()
            continue
        if colon and prefix in ROLES:
            files[prefix, rest.strip()] = column.strip()
            continue
        if colon and prefix == "mask":
            left, _, column = entry.rpartition("=")
            options[f"mask:{left.partition(':')[2].strip()}"] = column.strip()
            continue
        if not colon and prefix in _OPTIONS:
            words, value = _OPTIONS[prefix], column.strip()
            if not value or (words and value.lower() not in words):
                fix = f"Use {', '.join(words)}." if words else "Say which."
                raise InputError(f"{prefix} cannot be {value[:40]!r}.", where="map", fix=fix)
            options[prefix] = value.lower() if words else value
            continue
        kind = next((k for k in KINDS if k == prefix), None) if colon else None
        role = (rest if colon else left).strip().lower()
        if (colon and kind is None) or role not in ROLES:
            raise InputError(f"unknown role in {entry[:80]!r}.", where="map", fix=_MAP_HELP)
        if kind is not None and role not in ROLES_OF[kind]:
            raise InputError(f"{kind} have no role {role!r}.", where="map", fix=_MAP_HELP)
        roles.append((kind, role, column.strip()))
    return Corrections(tuple(roles), files, options)


_MAP_HELP = (
    f"Roles are {', '.join(ROLES)}; write role=column, items:title=column, or rating:FILE=column for one file. Options "
    f"of a file are {', '.join(_FILE_OPTIONS)}, as in kind:FILE=items; of the import {', '.join(_OPTIONS)}, as in "
    "zero=unrated."
)


def plain(name: str) -> str:
    """A column name as it is compared with known ones."""
    return re.sub(r"[\W_]+", "", unicodedata.normalize("NFKC", name)).lower()


def is_role_name(name: str) -> bool:
    key = plain(name)
    return key == "id" or key in _USERISH or any(key in ranks for ranks in _RANK.values())


def guess(
    file_name: str, columns: Sequence[str], sample: pa.Table, corrections: Corrections
) -> tuple[Kind, dict[str, str]]:
    """Kind of a file and its roles (role -> column), from names, first values and corrections.

    A role that is not found is simply absent; the caller knows which ones it cannot do without.
    """
    roles: dict[str, str] = {}
    taken: set[str] = set()
    for role in ROLES:
        ranked = sorted((_RANK[role][plain(c)], i, c) for i, c in enumerate(columns) if plain(c) in _RANK[role])
        for _, _, column in ranked:
            if column not in taken and _fits(role, sample.column(column)):
                roles[role] = column
                taken.add(column)
                break
    if not {"user_id", "item_id"} <= roles.keys():
        _guess_bare_id(file_name, columns, roles)
    present = set(columns)
    general = [(role, column) for kind, role, column in corrections.roles if kind is None]
    _apply(roles, general, present)
    kind = _kind(file_name, roles, columns)
    if kind == "interactions":
        # Beside a user these say something about the event (a purchase, a buyer's name), not about the item.
        for role in ("title", "category"):
            if role in roles and plain(roles[role]) in _EVENTFUL and (role, roles[role]) not in general:
                del roles[role]
    told = corrections.option("kind", file_name)
    for option in KINDS:
        special = [(role, column) for k, role, column in corrections.roles if k == option]
        special += corrections.roles_of(file_name)
        corrected = dict(roles)
        _apply(corrected, special, present)
        needed = {"interactions": {"user_id", "item_id"}, "items": {"item_id"}, "users": {"user_id"}}[option]
        if told == option or (told is None and (kind == option or (special and _completes(roles, corrected, needed)))):
            kind, roles = option, corrected
            break
    if kind == "items" and "item_id" not in roles and plain(columns[0]) == "id":
        roles["item_id"] = columns[0]
    if kind == "users" and "user_id" not in roles and plain(columns[0]) == "id":
        roles["user_id"] = columns[0]
    return kind, {role: roles[role] for role in ROLES if role in roles and role in ROLES_OF[kind]}


def _completes(before: Mapping[str, str], after: Mapping[str, str], needed: set[str]) -> bool:
    return needed <= after.keys() and not needed <= before.keys()


def _apply(roles: dict[str, str], entries: Sequence[tuple[str, str]], present: set[str]) -> None:
    for role, column in entries:
        if column == "":
            roles.pop(role, None)
        elif column in present:
            for other in [r for r, c in roles.items() if c == column]:
                del roles[other]
            roles[role] = column


def _kind(file_name: str, roles: Mapping[str, str], columns: Sequence[str]) -> Kind:
    if {"user_id", "item_id"} <= roles.keys():
        return "interactions"
    if "item_id" in roles:
        return "items"
    if "user_id" in roles:
        # A table with ratings by users is about interactions, even where the item column was not recognised.
        return "interactions" if "rating" in roles else "users"
    if _USER_FILE.search(file_name):
        return "users"
    return "items" if _ITEM_FILE.search(file_name) and "rating" not in roles else "interactions"


def _guess_bare_id(file_name: str, columns: Sequence[str], roles: dict[str, str]) -> None:
    """A column called just "id" names users or items, by the company it keeps."""
    bare = next((c for c in columns if plain(c) == "id"), None)
    if bare is None or "user_id" in roles or "item_id" in roles:
        return
    if _USER_FILE.search(file_name) or any(plain(c) in _USERISH for c in columns):
        roles["user_id"] = bare
    elif "title" in roles or _ITEM_FILE.search(file_name):
        roles["item_id"] = bare


def _fits(role: str, values: pa.ChunkedArray) -> bool:
    """Whether the first values can play the role: a film's "PG-13" is no rating, however its column is called."""
    if role not in ("rating", "timestamp"):
        return True
    text = values.combine_chunks()
    filled = pa.array([v for v in text.to_pylist() if v.strip()], pa.large_string())
    if not len(filled):
        return True
    bad = parse_numbers(filled)[1] if role == "rating" else parse_times(filled, "timestamp", strict=False)[1]
    return bool(bad.mean() <= 0.5)


def check_headers(columns: Sequence[str], where: str) -> None:
    """Raises: DataError for a header that is empty or stands there twice."""
    seen: set[str] = set()
    for number, column in enumerate(columns, start=1):
        if not column:
            raise DataError(f"column {number} has no name.", where=where, fix="Give every column a name of its own.")
        if column in seen:
            raise DataError(
                f"the column name {column[:80]!r} stands there twice.", where=where, fix="Rename one of the columns."
            )
        seen.add(column)


#: Words that a template would not read as a column: Jinja2's own, and the methods of a mapping.
_UNUSABLE = frozenset(
    [
        "true",
        "false",
        "none",
        "not",
        "and",
        "or",
        "if",
        "else",
        "elif",
        "endif",
        "for",
        "endfor",
        "in",
        "is",
        "recursive",
        "loop",
        "self",
        "caller",
        "varargs",
        "kwargs",
        "item",
        "items",
        "keys",
        "values",
        "get",
        "pop",
        "popitem",
        "update",
        "copy",
        "clear",
        "setdefault",
        "fromkeys",
    ]
) | {word for word in keyword.kwlist if word not in {"class"}}


def field_names(columns: Sequence[str], reserved: Sequence[str]) -> tuple[dict[str, str], list[str]]:
    """Identifiers for template use: ``Release Year`` -> ``release_year``.

    Args:
        columns: names as they stand in the file.
        reserved: names that are taken already.

    Returns:
        (file's name -> identifier, notes about collisions and unusable names).
    """
    taken, names, notes = set(reserved), {}, []
    for column in columns:
        base = re.sub(r"\W+", "_", unicodedata.normalize("NFKC", column).lower()).strip("_")[:60] or "field"
        if not base.isidentifier():
            base = f"field_{base}" if f"field_{base}".isidentifier() else "field"
        if base in _UNUSABLE:
            base += "_"
        name, number = base, 2
        while name in taken:
            name, number = f"{base.rstrip('_')}_{number}", number + 1
        if name not in (base, base.rstrip("_")) or base.endswith("_"):
            notes.append(f"column {column[:60]!r} is called {name!r} in this dataset")
        taken.add(name)
        names[column] = name
    return names, notes
