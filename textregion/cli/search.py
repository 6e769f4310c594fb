"""`textregion index` and `textregion search`: images to a table of regions, words to hits."""

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path

from textregion.boxes import HEADER
from textregion.cli.command_line import Parser, output_folder, positive, run_program
from textregion.cli.engine_flags import add_batch_flag, add_engine_flags, engine_of
from textregion.cli.flags import (
    add_model_flags,
    add_option_flags,
    chosen_preset,
    default_source,
    given_options,
    mask_source_flag,
)
from textregion.cli.jobs import box_of
from textregion.devices import resolve_device
from textregion.errors import InputError
from textregion.index.hits import contact_sheet, hits_json, hits_table, shown_name
from textregion.index.region_index import DEFAULT_PRESET, FLUSH_SECONDS, Added, RegionIndex
from textregion.index.search import MOST_HITS, RERANKED, Effort
from textregion.index.sources import find
from textregion.index.store import Tables
from textregion.masks import automatic_sources
from textregion.render import png_bytes
from textregion.storage import write_atomically

INDEX_HELP = "Put every region of many images into one table, to be found by words: textregion search."
INDEX_EXAMPLES = """examples:
  textregion index photos/ --to photos.lance                      a folder with all its subfolders
  textregion index 'shots/*.jpg' --list more.txt --to photos.lance     more images into the same table
  textregion index photos/ --to photos.lance --prune              images that are gone go from the table too
  textregion index s3://bucket/photos --to s3://bucket/photos.lance --engine ray --address auto
  textregion index --to photos.lance --stats                      what is in it
  textregion index --to photos.lance --build_index rq             from about 100,000 regions on: quick searches
  textregion index --to photos.lance --add_column siglip2-b16     a second backbone's tokens for the same regions

Run the same command again at any time, also after Ctrl-C or a crash: only what is missing or has changed is done. The
table keeps the preset and its options, so they need not be given again. Needs `bash setup_env.sh --search`
(pip install 'textregion[search]'), --engine ray `--cluster` ('textregion[cluster]').

exit code: 0 all done, 1 some images could not be read, 2 bad input, 130 stopped by Ctrl-C"""
SEARCH_HELP = "Find things in a table of regions by words, or by a region of an image."
SEARCH_EXAMPLES = """examples:
  textregion search photos.lance "a red mug"
  textregion search photos.lance "dog; puppy" --not "statue; toy" --per_image 1
  textregion search photos.lance "a red mug" --where "area > 0.002 and image like '%kitchen%'" --top 100
  textregion search photos.lance --like photo.jpg --box 10,20,200,240      regions like this one
  textregion search photos.lance "a red mug" --absent             say so where it is probably not there
  textregion search photos.lance "a red mug" --rerank crops       look at the best hits once more

what is written into --output:
  hits.json   score, image, region, box, mask (COCO RLE) of every hit
  hits.png    the hits as pictures, each with its region's outline

Columns for --where: image, image_hash, region, box, area (share of the image), mask, predicted_iou, stability, and your
own. exit code: 0, 1 no hit or pictures that are gone, 2 bad input, 130 stopped by Ctrl-C"""
OUTPUT = "outputs/search"


def index_arguments(arguments: Sequence[str] | None) -> argparse.Namespace:
    """The command line of `textregion index`."""
    parser = Parser(prog="textregion index", description=INDEX_HELP, epilog=INDEX_EXAMPLES)
    parser.add_argument("images", nargs="*", metavar="IMAGES", help="folders, globs in quotes, files, URIs of fsspec")
    parser.add_argument("--list", nargs="+", default=[], metavar="FILE", help="text files that name such, one a line")
    parser.add_argument("--to", required=True, metavar="TABLE", help="the table: a folder, or a URI as s3://…")
    parser.add_argument("--prune", action="store_true", help="forget images below the given folders that are gone")
    flush = f"regions can be searched, and survive a crash, after so many seconds at most ({FLUSH_SECONDS:g})"
    parser.add_argument("--flush_seconds", type=float, default=FLUSH_SECONDS, metavar="S", help=flush)
    table = parser.add_argument_group("the table as it is")
    table.add_argument("--stats", action="store_true", help="images, regions, bytes, columns, index, unreadable images")
    kinds = "rq (RaBitQ, the default choice) or pq (product quantisation); searches are exact without one"
    table.add_argument("--build_index", choices=("rq", "pq"), help=kinds)
    table.add_argument("--compact", action="store_true", help="join small files, drop old versions")
    column = "add a column of tokens of this backbone for the regions that are there; reads the images again"
    table.add_argument("--add_column", metavar="PRESET", help=column)
    keys = "add keys of this vision tower of timm, for segment --memory_key; reads the images again"
    table.add_argument("--add_keys", metavar="TOWER", help=keys)
    table.add_argument("--key_checkpoint", metavar="FILE", help="that tower's weights on disk (fetched)")
    table.add_argument("--join", metavar="FILE", help="CSV or Parquet with a column image: its others become columns")
    table.add_argument("--export", metavar="FILE", help="write all regions to a Parquet file, or fiftyone:NAME")
    imported = "tokens.safetensors files of `textregion segment --save_tokens`, or folders of such"
    table.add_argument("--import_tokens", nargs="+", metavar="FILE", help=imported)
    add_engine_flags(parser)
    add_batch_flag(parser)
    add_model_flags(parser, DEFAULT_PRESET)
    mask_source_flag(parser.add_argument_group("which regions"), " (the preset's)", choices=automatic_sources())
    add_option_flags(parser)
    args = parser.parse_args(arguments)
    args.preset, args.clip_pretrained, args.clip_architecture = chosen_preset(args), None, None
    return args


def index(arguments: Sequence[str] | None = None) -> int:
    """The program `textregion index`; returns its exit code."""
    return run_program(lambda: run_index(index_arguments(arguments)), "the same command goes on from there")


def run_index(args: argparse.Namespace) -> int:
    """Add images and do what else is asked of the table. InputError for all that the user can put right."""
    from textregion.index import upkeep
    from textregion.index.keys import load_tower

    options = {**given_options(args), "device": args.device}
    if args.masks not in (None, default_source(args)):
        options["mask_generator"] = args.masks
    engine = engine_of(args)
    exists = Tables.exist(args.to)
    if not exists and not args.images and not args.list and not args.import_tokens:
        raise InputError(f"no region index at {args.to}; make one: textregion index PHOTOS --to {args.to}")
    if exists:
        index = RegionIndex.open(args.to, args.preset, **options)
    else:
        find(args.images, args.list) if args.images or args.list else None  # nothing is made for no image
        index = RegionIndex.create(args.to, args.preset or DEFAULT_PRESET, **options)
    code = 0
    if args.images or args.list:
        added = index.add(args.images, args.list, engine, args.prune, bar=True, flush_seconds=args.flush_seconds)
        code = tell_added(added, args.to)
    elif args.prune:
        raise InputError("got --prune without images; name the folders whose images may be gone")
    if args.import_tokens:
        print(upkeep.import_tokens(index, args.import_tokens))
    if args.join:
        print(upkeep.join(index, args.join))
    if args.add_column:
        print(upkeep.add_column(index, args.add_column, **options))
    if args.add_keys:
        print(upkeep.add_keys(index, load_tower(args.add_keys, args.key_checkpoint, resolve_device(args.device))))
    if args.compact:
        print(upkeep.compact(index))
    if args.build_index:
        print(upkeep.build_index(index, args.build_index))
    if args.export:
        print(upkeep.export(index, args.export))
    if args.stats:
        print(upkeep.stats(index))
    return code


def tell_added(added: Added, table: str) -> int:
    """What became of the images; 1 when some could not be read. InputError when none could."""
    for image, reason in [*added.unreadable, *added.lost]:
        print(f"left out: {shown_name(image)}: {reason}", file=sys.stderr)
    print(f"{table}: {added.line()}")
    bad = len(added.unreadable) + len(added.lost)
    if bad and not added.encoded and not added.unchanged:
        raise InputError(f"none of {bad} images could be read; see the lines above")
    if bad:
        print(f"error: {bad} images are not in the table; see the lines above", file=sys.stderr)
    return int(bad > 0)


def search_arguments(arguments: Sequence[str] | None) -> argparse.Namespace:
    """The command line of `textregion search`."""
    parser = Parser(prog="textregion search", description=SEARCH_HELP, epilog=SEARCH_EXAMPLES)
    add = parser.add_argument
    add("table", metavar="TABLE", help="a table of textregion index")
    add("words", nargs="*", metavar="WORDS", help='what to find; synonyms as "dog; puppy": the best of them counts')
    add("--like", metavar="IMAGE", help="find regions like this image, or like a box of it")
    add("--box", metavar="BOX", help=f"of --like: {HEADER} in its pixels (default: all of it)")
    add("--not", dest="without", action="append", default=[], metavar="WORDS", help="take off how well these fit")
    add("--top", type=positive, default=24, metavar="N", help=f"hits, at most {MOST_HITS} (24)")
    add("--per_image", type=positive, metavar="N", help="hits of one image, at most (all)")
    add("--where", metavar="FILTER", help='only regions for which this holds, as "area > 0.002" (SQL)')
    add("--absent", action="store_true", help="mark hits below what unrelated control words reach in this table")
    rerank = (
        f"crops: score the best {RERANKED} hits again by what the image model says of their crops; reads the images"
    )
    add("--rerank", choices=("crops",), help=rerank)
    add("--image_root", metavar="DIR", help="where the indexed images are now, if they have moved")
    add("--output", default=OUTPUT, metavar="DIR", help=f"where hits.json and hits.png go ({OUTPUT}/)")
    effort = Effort()
    how = parser.add_argument_group("how hard an index is searched (tables of fewer than 100,000 regions need none)")
    how.add_argument(
        "--probes", type=positive, default=effort.probes, metavar="N", help=f"partitions ({effort.probes})"
    )
    refine = f"candidates a hit that are compared exactly ({effort.refine})"
    how.add_argument("--refine", type=positive, default=effort.refine, metavar="N", help=refine)
    add_model_flags(parser, "the table's")
    args = parser.parse_args(arguments)
    args.preset, args.clip_pretrained, args.clip_architecture = chosen_preset(args), None, None
    return args


def search(arguments: Sequence[str] | None = None) -> int:
    """The program `textregion search`; returns its exit code."""
    return run_program(lambda: run_search(search_arguments(arguments)))


def run_search(args: argparse.Namespace) -> int:
    """Search, print the table, write hits.json and hits.png. InputError for all that the user can put right."""
    index = RegionIndex.open(args.table, args.preset, **{**given_options(args), "device": args.device})
    output = output_folder(args.output)
    asked = {name: value for name, value in vars(args).items() if name in ASKED and value}
    hits = index.search(
        args.words,
        args.top,
        like=args.like,
        box=box_of(args.box) if args.box else None,
        without=args.without,
        where=args.where,
        per_image=args.per_image,
        absent=args.absent,
        rerank=args.rerank is not None,
        image_root=args.image_root,
        effort=Effort(args.probes, args.refine),
    )
    told = "; ".join([*args.words, *[f"like {args.like}"] * bool(args.like)])
    told += "".join(f", not {words}" for words in args.without)
    sheet, problems = contact_sheet(hits, index.opener(args.image_root), f"{told}: {len(hits)} hits in {args.table}")
    write_atomically(output / "hits.json", json.dumps(hits_json(hits, asked), indent=1).encode())
    write_atomically(output / "hits.png", png_bytes(sheet))
    if not hits:
        print(f"no region fits the filter {args.where}" if args.where else f"no region in {args.table}")
    else:
        print(hits_table(hits))
        if args.absent and all(hit.absent for hit in hits):
            print("probably nothing of the kind is there: unrelated words reach higher scores in this table")
    for problem in problems[:5]:
        print(f"no picture: {problem}", file=sys.stderr)
    if len(problems) > 5:
        print(f"no picture: {len(problems) - 5} more images", file=sys.stderr)
    print(f"files in {Path(output)}: hits.json, hits.png")
    return int(not hits or bool(problems))


ASKED = ("table", "words", "like", "box", "without", "top", "per_image", "where", "absent", "rerank")
