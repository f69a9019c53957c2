#!/usr/bin/env python3
"""journal: turns two states of an image into a transaction for debugfs.

  journal.py pack OLD NEW BLOCK_SIZE OUT [FILE...]
      writes the blocks of NEW that differ from OLD to OUT, and prints their
      numbers as `journal_write -b` wants them. Blocks of the regular FILEs of
      NEW are left out: their data goes to its place, not through the journal.
  journal.py place NEW IMAGE FILE...
      puts the data of these files in its place in IMAGE
  journal.py reused NEW LIST FILE...
      the blocks of LIST that belong to these files in NEW: to be revoked
  journal.py rotate IMAGE BLOCK_SIZE LAST
      moves the log so that it begins LAST blocks before the end of the
      journal and goes on at its beginning. Only for journals without checksums.
"""

import sys

sys.dont_write_bytecode = True
import ext  # noqa: E402

SUPERBLOCK_MAGIC, START = bytes.fromhex('c03b3998'), 0x1C  # of jbd2; fields are big-endian


def main(command, *arguments):
    return {'pack': pack, 'place': place, 'reused': reused, 'rotate': rotate}[command](*arguments)


def pack(old, new, block_size, out, *files):
    size, leave, numbers = int(block_size), _blocks(new, files), []
    with open(old, 'rb') as before, open(new, 'rb') as after, open(out, 'wb') as blocks:
        number = 0
        while block := after.read(size):
            if block != before.read(size) and number not in leave:
                numbers.append(number)
                blocks.write(block)
            number += 1
    print(','.join(map(str, numbers)))


def place(new, image, *files):
    size = int(ext.super_field(new, 'Block size'))
    with open(new, 'rb') as source, open(image, 'r+b') as target:
        for block in sorted(_blocks(new, files)):
            source.seek(block * size)
            target.seek(block * size)
            target.write(source.read(size))


def reused(new, numbers, *files):
    found = _blocks(new, files) & set(map(int, numbers.split(',')))
    if not found:
        sys.exit('journal: no block was used again')
    print(','.join(map(str, sorted(found))))


def rotate(image, block_size, last):
    size, last = int(block_size), int(last)
    where = _mapped(image, '<8>')
    with open(image, 'r+b') as disk:
        def read(index):
            disk.seek(where[index] * size)
            return disk.read(size)

        def write(index, block):
            disk.seek(where[index] * size)
            disk.write(block)
        head = read(0)
        assert head[:4] == SUPERBLOCK_MAGIC and int.from_bytes(head[START:START + 4], 'big') == 1
        count = len(where) - 1  # block 0 is the journal's superblock
        log = [read(1 + n) for n in range(count)]
        start = count - last
        for n, block in enumerate(log):
            write(1 + (start + n) % count, block)
        write(0, head[:START] + (1 + start).to_bytes(4, 'big') + head[START + 4:])


def _blocks(image, files):
    return {block for file in files for block in _mapped(image, file).values()}


def _mapped(image, file):
    """{logical: physical} of a file."""
    answer = ext.ask(image, ['stat %s' % file])[0]
    return {logical + n: physical + n for logical, physical, count in ext.block_map(answer) for n in range(count)}


if __name__ == '__main__':
    try:
        main(*sys.argv[1:])
    except ext.DebugfsError as error:
        sys.exit('journal: %s' % error)
