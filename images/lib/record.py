"""record: what is known about one entry of a tree, as a line of JSON.

A truth file holds one object a line, sorted by the bytes of the path. Names,
targets and names of attributes are bytes; `escape` makes them plain ASCII:
each byte outside 0x21..0x7E, and each of % " \\ , becomes %XX (upper case hex).
So a line needs no JSON escapes, and `grep '"path": "/etc/motd"'` finds it.

  path     "/" is the root, everything else begins with "/"
  type     file dir link fifo sock chr blk
  mode     the lower twelve bits, as an octal string ("0644")
  uid gid size nlink ino blocks (of 512 bytes)   numbers
  rdev     [major, minor] of chr and blk
  mtime_s mtime_ns, also atime ctime crtime      seconds may be negative
  target   of a link
  xattrs   {name: value in hex}; ACLs as the kernel hands them out
  sha256   of a file's content, up to WHOLE bytes of size
  pieces   for larger files instead: SHA-256 over each PIECE of the file that
           is not all zero, in order, as its offset (8 bytes, little endian)
           and its bytes. It does not depend on where a reader sees holes.
  data     [[start, end], ...] in bytes: what SEEK_DATA finds, the rest is hole
  flags    inode flags as the format has them (a number); not from a kernel
  errno    why a file could not be read ("EOPNOTSUPP")

A key that the source of truth cannot tell is left out.
"""

import hashlib
import json

WHOLE = 64 << 20
PIECE = 4096

_PLAIN = frozenset(range(0x21, 0x7F)) - frozenset(b'%"\\')


def escape(name):
    """Bytes to plain ASCII."""
    return ''.join(chr(b) if b in _PLAIN else '%%%02X' % b for b in name)


def unescape(text):
    """The inverse of `escape`."""
    head, *rest = text.encode('ascii').split(b'%')
    return head + b''.join(bytes([int(part[:2], 16)]) + part[2:] for part in rest)


def hash_content(entry, size, data, read):
    """Set `sha256` or `pieces`. `read(offset, length)` gives bytes, `data` the ranges that may hold any."""
    if size <= WHOLE:
        entry['sha256'] = hashlib.sha256(read(0, size)).hexdigest()
        return
    digest = hashlib.sha256()
    done = 0  # a piece that two ranges touch counts once
    for start, end in data:
        offset = max(start - start % PIECE, done)
        while offset < end:
            piece = read(offset, min(PIECE, size - offset))
            if piece.strip(b'\0'):
                digest.update(offset.to_bytes(8, 'little') + piece)
            offset += PIECE
        done = max(done, offset)
    entry['pieces'] = digest.hexdigest()


def merge(ranges, size):
    """Sorted, joined where they touch, cut at `size`."""
    out = []
    for start, end in sorted(ranges):
        end = min(end, size)
        if start >= end:
            continue
        if out and start <= out[-1][1]:
            out[-1][1] = max(out[-1][1], end)
        else:
            out.append([start, end])
    return out


def write(entries, out):
    """Entries (with `path` still in bytes) as sorted lines of JSON."""
    for entry in sorted(entries, key=lambda e: e['path']):
        out.write(json.dumps({**entry, 'path': escape(entry['path'])}) + '\n')


def load(path):
    """{path: entry} of a truth file."""
    with open(path, encoding='ascii') as lines:
        return {e['path']: e for e in map(json.loads, lines)}
