"""Words that tell a person's name: common given names and surnames, titles, and what a column of names is called.

Short on purpose: the lists find columns and sentences full of names, they do not know every name there is.
"""

from __future__ import annotations

import re


def _words(text: str) -> frozenset[str]:
    return frozenset(text.split())


GIVEN = _words(
    """
    adam adrian aisha alan alex alexander alexandra ali alice alina amanda amelia amir amy ana andrea andreas andrei
    andrew angela anita anna anne annie anton antonio ariel arthur astrid barbara beatrice ben benjamin bianca brian
    bruno carla carlos carmen carol caroline catherine charles charlotte chiara chloe chris christian christina
    christopher clara claire claudia cristina daniel daniela david deborah dennis diana diego dmitri dominik donna
    dorothy edward elena elias elisabeth elizabeth ella emily emma eric erik esther ethan eva fabian fatima felix
    fernando florian francesca francisco frank franziska frederik gabriel gabriela george georgia giovanni giulia
    grace greta guillaume gustav hannah hans harry hassan heather heidi heinrich helen helena henri henry hiroshi hugo
    ian ibrahim igor ingrid irina isabel isabella ivan jack jacob james jan jane janet jason javier jean jennifer
    jeremy jessica joan joanna johan johanna john jonas jonathan jorge jose joseph joshua juan julia julian julie
    juliette karen karin karl katarina katherine kathleen katrin kevin klaus kristina lars laura lauren laurent lea
    leon leonie lena lily linda lisa louis louise luca lucas lucia luis luisa lukas magdalena malik manuel marco
    margaret maria marie marina mario mark marta martha martin mary matthew matthias maya mehmet mei melissa mia
    michael michelle miguel mohammed monica monika muhammad nadia nancy natalia natalie nathan nicholas nicole nikolai
    nina noah nora olga oliver olivia omar oscar pablo pamela patricia patrick paul paula pavel pedro peter petra
    philip pierre priya rachel rahul ralf raul rebecca renate ricardo richard robert roberto rosa ruth ryan samantha
    samir samuel sandra sara sarah sebastian sergei sharon silvia simon sofia sophia sophie stefan stefanie stephanie
    stephen steven susan susanne svetlana tamara tanya tatiana teresa theresa thomas timothy tobias tomas ursula
    valentina vanessa vera victor victoria viktor vincent virginia vladimir walter william wolfgang yasmin yuki yusuf
    zoe
    """
)

SURNAMES = _words(
    """
    adams ahmed ali allen anderson bailey baker becker bell bennett brooks brown campbell carter chen clark collins
    cook cooper costa cox davies davis diaz edwards evans fernandez fischer foster garcia gomez gonzalez gray green
    gupta hall harris hernandez hill hoffmann howard hughes ivanov jackson jansen jenkins johnson jones keller kelly
    khan kim king klein koch kowalski kumar lee lewis lopez martin martinez meyer miller mitchell moore morgan morris
    mueller murphy murray nguyen novak parker patel perez peters petrov phillips popov price ramirez reed reyes
    richardson richter rivera roberts robinson rodriguez rogers ross rossi russo sanchez sanders sato schmidt
    schneider schroeder schulz schwarz scott silva singh smirnov smith stewart suzuki tanaka taylor thomas thompson
    torres turner wagner walker wang ward watson weber white williams wilson wolf wood wright yamamoto yang young
    zhang zimmermann
    """
)

#: Single characters that begin most Chinese names, and the common double ones.
HAN_SURNAMES = (
    "王李张刘陈杨黄赵吴周徐孙马朱胡郭何高林罗郑梁谢宋唐许韩冯邓曹彭曾肖田董袁潘于蒋蔡余杜叶程苏魏吕丁任沈姚卢姜崔钟谭陆"
    "汪范金石廖贾夏韦付方白邹孟熊秦邱江尹薛闫段雷侯龙史陶黎贺顾毛郝龚邵万钱严覃武戴莫孔向汤"
)
HAN_DOUBLE = ("欧阳", "司马", "上官", "诸葛", "夏侯", "东方", "皇甫", "尉迟", "公孙", "慕容", "司徒", "令狐")

#: Headers that say "the name of a person" wherever they stand ...
_SURE = _words(
    """
    firstname lastname fullname surname familyname givenname middlename forename maidenname
    realname personname username customername clientname reviewername authorname contactname
    buyername membername usersname vorname nachname prenom nombreyapellido apellido apellidos
    cognome 姓名 真实姓名 用户姓名 客户姓名 联系人 收货人 用户名 昵称
    """
)
#: ... and those that say it only in a table of users.
_IN_USERS = _words(
    """
    name nom nombre naam imie nickname nick displayname login customer client contact 名字
    """
)


def is_name_header(column: str, *, about_users: bool) -> bool:
    """Whether a column is called like one of persons' names: ``reviewerName``, ``last_name``, ``姓名``."""
    bare = re.sub(r"[\s_.\-]+", "", column).casefold()
    return bare in _SURE or (about_users and bare in _IN_USERS)


def is_han_name(text: str) -> bool:
    """Two or three Han characters after a common surname, or a double surname and one or two more."""
    if not all("\u4e00" <= letter <= "\u9fff" for letter in text):
        return False
    if text[:2] in HAN_DOUBLE:
        return 3 <= len(text) <= 4
    return 2 <= len(text) <= 3 and text[0] in HAN_SURNAMES
