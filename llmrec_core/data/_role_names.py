"""The words by which columns are known: kinds of tables, their roles, and the names that columns have in the wild."""

from __future__ import annotations

import re
import unicodedata
from typing import Literal

Kind = Literal["interactions", "items", "users", "impressions", "knowledge", "links", "instructions", "vectors"]
KINDS: tuple[Kind, ...] = (
    "interactions",
    "items",
    "users",
    "impressions",
    "knowledge",
    "links",
    "instructions",
    "vectors",
)
#: What a file can be laid out as; the long tables that it becomes have kinds.
LAYOUTS: tuple[str, ...] = (
    "rows",
    "matrix",
    "histories",
    "impressions",
    "instructions",
    "knowledge",
    "links",
    "vectors",
    "tags",
)

#: Names by role, most telling first; compared as :func:`plain` makes them.
_NAMES: dict[str, str] = {
    "user_id": "userid user uid customerid customer custid cid memberid member reviewerid reviewer "
    "visitorid visitor accountid account clientid client profileid playerid listenerid readerid "
    "viewerid studentid subscriberid buyerid shopperid userno usernumber useridx username users "
    "personid respondentid respondent responseid participantid learnerid learner employeeid patronid guestid memberno "
    "membernumber customerno customernumber customeruniqueid userpseudoid anonymousid fullvisitorid userfullname "
    "reviewername sessionid session playlistid 用户id 用户编号 用户 用户号 会员id 会员编号 会员 顾客id 顾客编号 顾客 "
    "客户id 客户编号 客户 买家id 买家 读者id 读者 用户名 ユーザーid ユーザid ユーザー ユーザ 会員id "
    "会員番号 会員 顧客id 顧客番号 顧客 利用者id 利用者 nutzerid nutzer nutzernummer benutzerid "
    "benutzer kundenid kundennummer kundennr kunde kunden kundin mitgliedsnummer mitglied "
    "idutilisateur utilisateurid utilisateur idclient codeclient numeroclient idusuario usuarioid "
    "usuario idcliente codigocliente cliente clienteid",
    "item_id": "itemid item iid movieid movie filmid film productid product parentasin asin sku "
    "skuid goodsid goods bookid book isbn isbn13 isbn10 trackid track songid song artistid videoid "
    "video articleid article newsid gameid game appid poiid venueid businessid recipeid courseid "
    "showid seriesid animeid adid docid contentid listingid merchandiseid itemno itemidx productno "
    "productcode stockcode itemcode titleid titleno trackuri spotifytrackuri courseslug coursecode "
    "eventcontext exerciseid lessonid quizid problemid "
    "物品id 物品编号 物品 商品id 商品编号 商品 电影id 电影编号 电影 影片id 影片 "
    "图书id 图书编号 图书 书籍id 书籍 歌曲id 歌曲 视频id 视频 课程id 文章id 新闻id 产品id 产品编号 "
    "产品 商品コード 商品番号 アイテムid アイテム 映画id 映画 作品id 作品 製品id 製品 artikelid "
    "artikelnummer artikelnr artikel produktid produktnummer produkt filmnummer buchid buch idarticle "
    "codearticle idproduit produitid codeproduit produit idfilm livre idlivre idarticulo articuloid "
    "articulo idproducto productoid codigoproducto producto idpelicula pelicula libro idlibro",
    "rating": "rating ratings score scores stars star starrating overall ratingvalue userrating bookrating "
    "movierating filmrating itemrating productrating gamerating myrating "
    "reviewscore reviewrating grade vote preference nps npsscore 评分 打分 分数 得分 星级 评级 評価 評価点 点数 "
    "スコア 星 レーティング bewertung bewertungen sterne punkte punktzahl note evaluation notation "
    "etoiles puntuacion calificacion valoracion estrellas",
    "timestamp": "timestamp unixreviewtime unixtime unixtimestamp epoch time datetime ts eventtimestamp eventtime "
    "ratedat ratingtime watchedat viewedat createdat purchasedat clickedat boughtat lastwatched date "
    "eventdate ratingdate reviewtime reviewdate purchasedate orderdate transactiondate invoicedate "
    "createddate timestamputc "
    "when eventat orderedat placedat occurredat addedat playedat listenedat "
    "soldat visitedat loggedat submittedat reviewedat completedat dateadded addedon borrowedat borrowedon loandate "
    "checkoutdate lastactivity lastplayed reviewcreationdate completedon submittedon "
    "时间戳 时间 日期 评分时间 购买时间 下单时间 创建时间 交互时间 观看时间 "
    "浏览时间 日時 時刻 日付 タイムスタンプ 購入日 購入日時 評価日時 zeitstempel zeitpunkt zeit datum "
    "uhrzeit kaufdatum bestelldatum horodatage dateheure datecommande dateachat heure fecha fechahora "
    "marcadetiempo fechacompra hora",
    "title": "title movietitle filmtitle itemtitle producttitle booktitle name itemname moviename "
    "productname bookname gamename songname trackname articletitle newstitle originaltitle "
    "displayname headline mastermetadatatrackname "
    "标题 名称 片名 书名 电影名 电影名称 商品名 商品名称 商品标题 歌名 题目 "
    "タイトル 作品名 名前 品名 映画名 titel filmtitel buchtitel produktname artikelname bezeichnung "
    "artikelbezeichnung titre titrefilm nomproduit nomarticle nom libelle intitule titulo "
    "nombreproducto nombre denominacion",
    "description": "description desc itemdescription productdescription overview summary plot "
    "synopsis abstract blurb about details 描述 简介 介绍 摘要 内容简介 商品描述 剧情简介 説明 概要 "
    "あらすじ 商品説明 紹介 beschreibung produktbeschreibung inhalt zusammenfassung descriptif resume "
    "descripcion resumen sinopsis",
    "category": "category categories genre genres class maincategory itemcategory productcategory "
    "subcategory tags tag topics topic type department 类别 分类 类型 标签 品类 体裁 题材 カテゴリ "
    "カテゴリー ジャンル 分類 種類 kategorie kategorien warengruppe categorie rayon categoria "
    "categorias genero generos",
    "event": "event eventtype eventname action actiontype behavior behaviour behaviortype "
    "behaviourtype interactiontype activitytype 行为 行为类型 事件 事件类型 操作类型 行動 イベント "
    "aktion ereignis evenement evento accion",
    "price": "price itemprice productprice unitprice listprice saleprice retailprice priceusd 价格 "
    "单价 售价 価格 値段 単価 preis einzelpreis verkaufspreis prix prixunitaire precio preciounitario",
    "image": "image imageurl imageurls imagepath imagefile imageurlhighres images img imgurl "
    "imgpath picture pictureurl photo photourl poster posterurl posterpath thumbnail thumbnailurl "
    "cover coverurl coverimage picurl pic 图片 图片链接 图片地址 封面 海报 画像 画像url 写真 bild "
    "bildurl bilder photographie imagen imagenurl foto",
    "impression_id": "impressionid impression requestid logid",
    "label": "label labels clicked click isclick liked like islike thumbsup target",
    "position": "position pos rank slot",
    "history": "history histories userhistory clickhistory clickedhistory clickednews historyitems "
    "itemhistory itemsequence sequence itemseq seq itemlist itemids items itemidlist itemidseq "
    "interactions purchasehistory watchhistory viewhistory purchases watched viewed basket cart "
    "orders bought lineitems orderlines orderitems "
    "historyitemid historyitemids historytitles historytitle historyasin 历史 历史记录 "
    "历史序列 点击历史 购买历史 浏览历史 物品列表 商品列表 履歴 閲覧履歴 購入履歴 verlauf historie "
    "kaufhistorie historique historial",
    "history_ratings": "historyratings historyrating ratinglist ratingslist ratingseq ratings historyscores",
    "history_labels": "historylabels historylabel historyfeedback",
    "history_times": "historytimes historytime historytimestamps historytimestamp timelist "
    "timestamplist timestamps times timeseq timestampseq",
    "candidates": "candidates candidate impressions candidateids candidateid candidateitems "
    "candidateitem candidatenews candidatetitle candidatetitles candidatelist articleidsinview 候选 "
    "候选集 候補",
    "labels": "labels label candidatelabels clickedlabels clicks 标签列表",
    "instruction": "instruction instructions prompt systemprompt",
    "input": "input inputs context question query",
    "output": "output outputs response answer completion target label",
    "head": "headid head subject subjectid s h source sourceid 头实体",
    "relation": "relationid relation rel predicate property edge r p edgetype 关系",
    "tail": "tailid tail object objectid o t targetid 尾实体",
    "entity": "entityid entity freebaseid freebase mid wikidataid wikidata kgid dbpediaid 实体id 实体",
    "vector": "vector embedding embeddings emb features featurevector embed vec",
}
#: Roles of the three tables of every dataset.
ROLES: tuple[str, ...] = ("user_id", "item_id", "rating", "timestamp", "title", "description", "category", "event")
#: Roles of any table, and of columns that a layout unfolds (a history list, its labels).
ALL_ROLES: tuple[str, ...] = tuple(_NAMES)
ROLES_OF: dict[Kind, tuple[str, ...]] = {
    "interactions": ROLES,
    "items": ("item_id", "title", "description", "category", "price", "image"),
    "users": ("user_id",),
    "impressions": ("impression_id", "user_id", "timestamp", "item_id", "label", "position"),
    "knowledge": ("head", "relation", "tail"),
    "links": ("item_id", "entity"),
    "instructions": ("instruction", "input", "output"),
    "vectors": ("item_id", "vector"),
}
#: Without these a table of that kind cannot be read.
NEEDED_OF: dict[Kind, tuple[str, ...]] = {
    "interactions": ("user_id", "item_id"),
    "items": ("item_id",),
    "users": ("user_id",),
    "impressions": ("item_id",),
    "knowledge": ("head", "relation", "tail"),
    "links": ("item_id", "entity"),
    "instructions": ("output",),
    "vectors": ("item_id",),
}
USERISH_WORDS = (
    "age agegroup gender sex occupation job zipcode zip city country birthday birthyear membership 年龄 性别 职业 城市 "
    "年齢 性別 職業 都市 alter geschlecht beruf plz stadt wohnort edad genero sexo profesion ciudad sexe metier ville"
)


#: Words for a day that mean other things as often: a column called so holds times only where its cells are whole dates.
DAYS = frozenset(["tag", "day", "jour", "dia", "giorno", "dag", "日", "天", "日子"])


def plain(name: str) -> str:
    """A column name as it is compared with known ones: no case, accents, spaces, dashes and underscores."""
    folded = unicodedata.normalize("NFKD", unicodedata.normalize("NFKC", name)).casefold()
    bare = "".join(c for c in folded if not unicodedata.combining(c))
    return re.sub(r"[\W_]+", "", bare)


RANK: dict[str, dict[str, int]] = {
    role: {plain(name): rank for rank, name in reversed(list(enumerate(names.split())))}
    for role, names in _NAMES.items()
}
USERISH = frozenset(plain(word) for word in USERISH_WORDS.split()) - RANK["category"].keys()
_ID_ROLES = ("user_id", "item_id")
#: ``customer.name`` says who bought, not what.
_OF_ITEMS = ("title", "description", "category", "price", "image")
#: Ids of what happened: of neither a person nor a thing, however much they look like it.
_EVENT_ID = re.compile(
    "(order|basket|cart|invoice|transaction|trans|txn|receipt|purchase|booking|checkout|payment|event|log|row|line|"
    "record|entry|review|rating|interaction|request|visit|订单|流水|bestell|bestellung|auftrag|rechnung|beleg|bon|"
    "commande|facture|pedido|factura|注文)s?(id|no|nr|num|number|nummer|key|code|uuid|号|编号|番号)"
)


def rank_of(role: str, column: str) -> int | None:
    """How well a column's name fits the role: 0 is the most telling name, None no name of that role.

    The part behind the last dots counts where the whole does not (``t.user_id``), and for ids also the part behind
    underscores (``fk_user_id``): other roles are not taken from such parts, since an ``avg_rating`` is no rating.
    """
    ranks = RANK[role]
    whole = plain(column)
    if whole in ranks:
        return ranks[whole]
    parts = re.split(r"[./]", column)
    for start in range(1, len(parts)):
        if role in _OF_ITEMS and any(plain(part) in RANK["user_id"] for part in parts[:start]):
            break
        tail = plain("".join(parts[start:]))
        if tail in ranks:
            return ranks[tail] + 100
    if role in _ID_ROLES:
        words = re.split(r"[_\s-]", column.strip("_ "))
        for start in range(1, len(words) - 1):
            tail = plain("".join(words[start:]))
            if tail.endswith("id") and tail in ranks:
                return ranks[tail] + 200
    return None


def is_event_id(column: str) -> bool:
    """Whether a column's name is that of an order, a basket, a line of a log."""
    return _EVENT_ID.fullmatch(plain(column)) is not None


def is_role_name(name: str) -> bool:
    """Whether a cell of a first line reads like the name of a column."""
    key = plain(name)
    if key == "id" or key in USERISH or any(rank_of(role, name) is not None for role in _HEADER_ROLES):
        return True
    return _LAYOUT_NAME.search(key) is not None and any(key in ranks for ranks in RANK.values())


#: Of the names that layouts have, "cart" or "clicked" may as well be the first event of a file without a header.
_HEADER_ROLES = (*ROLES, "price", "image", "impression_id")
_LAYOUT_NAME = re.compile("histor|candidate|labels|list$|seq|instruction|output|relation|entity|embedding|vector|hist")
