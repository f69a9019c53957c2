"""ext: reads ext2, ext3 and ext4 images by asking debugfs(8).

One debugfs answers many questions: its input is a script, and it repeats each
command before the answer, which is how the answers are told apart. Times,
modes, extents come from its `stat`, names from `ls -p`, content from `dump`,
attributes from `ea_get`. Only of files above record.WHOLE bytes is the content
read here, from the blocks that debugfs names.
"""

import os
import re
import shutil
import struct
import subprocess
import tempfile

import record

ROOT = 2
INLINE_DATA = 0x10000000  # i_flags
ACL_USER, ACL_GROUP = 2, 8
KINDS = {'regular': 'file', 'directory': 'dir', 'symlink': 'link', 'FIFO': 'fifo',
         'socket': 'sock', 'character special': 'chr', 'block special': 'blk'}


class DebugfsError(Exception):
    """debugfs complained; the text is its own."""


def ask(image, commands, write=False):
    """The answers (bytes) to debugfs commands (str), in order."""
    if write:
        # Of all e2fsprogs, debugfs alone does not look at E2FSPROGS_FAKE_TIME.
        commands = ['set_current_time @%s' % os.environ['E2FSPROGS_FAKE_TIME'], *commands]
    with tempfile.NamedTemporaryFile('w', encoding='utf-8') as script:
        script.write(''.join(command + '\n' for command in commands))
        script.flush()
        done = subprocess.run(
            ['debugfs', *(['-w'] if write else []), '-f', script.name, image],
            env={**os.environ, 'DEBUGFS_PAGER': '__none__'}, stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE, stderr=subprocess.PIPE, check=False)
    wrong = [line for line in done.stderr.splitlines()
             if not line.startswith((b'debugfs 1.', b'Allocated inode:', b'Setting current time'))]
    if wrong:
        raise DebugfsError('%s: %s' % (image, b'; '.join(wrong[:5]).decode(errors='replace')))
    answers, at = [], 0
    marks = [b'debugfs: ' + command.encode() + b'\n' for command in commands]
    for mark, following in zip(marks, marks[1:] + [None]):
        start = done.stdout.index(mark, at) + len(mark)
        at = done.stdout.index(following, start) if following else len(done.stdout)
        answers.append(done.stdout[start:at])
    return answers


def walk(image):
    """[(path, ino)] of all names, the root first; parents come before children."""
    found, level = [(b'/', ROOT)], [(b'', ROOT)]
    while level:
        answers = ask(image, ['ls -p <%d>' % ino for _, ino in level])
        below = []
        for (parent, _), answer in zip(level, answers):
            for match in re.finditer(rb'/(\d+)/(\d+)/-?\d+/-?\d+/([^/]*)/\d*/\n', answer):
                ino, mode, name = int(match[1]), int(match[2], 8), match[3]
                if ino == 0 or name in (b'', b'.', b'..'):
                    continue
                found.append((parent + b'/' + name, ino))
                if mode >> 12 == 0o4:
                    below.append((parent + b'/' + name, ino))
        level = below
    return found


def super_field(image, name):
    """A line of `show_super_stats -h`, without its heading."""
    answer = ask(image, ['show_super_stats -h'])[0]
    match = re.search(rb'^' + re.escape(name.encode()) + rb':\s+(.*)$', answer, re.M)
    return match[1].decode() if match else ''


def tree(image):
    """The entries of the whole image."""
    names = walk(image)
    inos = sorted({ino for _, ino in names})
    block_size = int(super_field(image, 'Block size'))
    inodes = {ino: _inode(text, block_size) for ino, text
              in zip(inos, ask(image, ['stat <%d>' % ino for ino in inos]))}
    workdir = tempfile.mkdtemp(prefix='truth.')
    try:
        _add_xattrs(image, inodes, workdir)
        _add_content(image, inodes, workdir, block_size)
    finally:
        shutil.rmtree(workdir)
    for path, ino in names:
        entry = {key: value for key, value in inodes[ino].items() if not key.startswith('_')}
        yield {'path': path, **entry}


def _inode(text, block_size):
    """One answer of `stat`. Keys with `_` are for this file only."""
    def number(pattern, base=10):
        match = re.search(pattern, text)
        return int(match[1], base) if match else None
    kind = KINDS[re.search(rb'Type: (.*?)\s+Mode:', text)[1].decode()]
    entry = {
        'type': kind, 'mode': '%04o' % number(rb'Mode:\s+(\d+)', 8),
        'uid': number(rb'User:\s+(-?\d+)') & 0xFFFFFFFF, 'gid': number(rb'Group:\s+(-?\d+)') & 0xFFFFFFFF,
        'size': number(rb' Size: (\d+)') or 0, 'nlink': number(rb'Links: (\d+)'),
        'ino': number(rb'Inode: (\d+)'), 'blocks': number(rb'Blockcount: (\d+)'),
        'flags': number(rb'Flags: 0x([0-9a-f]+)', 16)}
    if kind in ('chr', 'blk'):
        major, minor = re.search(rb'Device major/minor number: (\d+):(\d+)', text).groups()
        entry['rdev'] = [int(major), int(minor)]
    for match in re.finditer(rb'^ ?([amc]|cr)time: 0x([0-9a-f]{8})(?::([0-9a-f]{8}))?', text, re.M):
        seconds, extra = int(match[2], 16), int(match[3] or b'0', 16)
        seconds -= (seconds >> 31) << 32
        name = match[1].decode() + 'time'
        entry[name + '_s'] = seconds + ((extra & 3) << 32)
        entry[name + '_ns'] = extra >> 2
    fast = re.search(rb'^Fast link dest: "(.*)"$', text, re.M | re.S)
    if kind == 'link' and fast:
        entry['target'] = record.escape(fast[1])
    entry['_map'] = block_map(text)
    entry['_names'] = re.findall(rb'^  (\S+) \(\d+\)', text.partition(b'Extended attributes:')[2], re.M)
    if kind == 'file':
        inline = re.search(rb'Size of inline data', text)
        ranges = [(0, entry['size'])] if inline else [
            (logical * block_size, (logical + count) * block_size) for logical, _, count in entry['_map']]
        entry['data'] = record.merge(ranges, entry['size'])
    return entry


def block_map(text):
    """[(logical, physical, count)] of the blocks that hold data; preallocated ones are left out."""
    found = []
    tail = re.search(rb'^(?:EXTENTS|BLOCKS):\n(.*?)(?:^TOTAL|\Z)', text, re.M | re.S)
    pattern = rb'\((\d+)(?:-(\d+))?(\[u\])?\):(\d+)'
    for match in re.finditer(pattern, tail[1] if tail else b''):
        first, last = int(match[1]), int(match[2] or match[1])
        if not match[3]:
            found.append((first, int(match[4]), last - first + 1))
    return found


def _add_xattrs(image, inodes, workdir):
    wanted = [(ino, name) for ino, entry in inodes.items() for name in entry['_names'] if name != b'system.data']
    if wanted:
        ask(image, ['ea_get -f %s/x%d <%d> "%s"' % (workdir, n, ino, name.decode())
                    for n, (ino, name) in enumerate(wanted)])
    for entry in inodes.values():
        entry['xattrs'] = {}
    for n, (ino, name) in enumerate(wanted):
        with open('%s/x%d' % (workdir, n), 'rb') as value:
            value = value.read()
        if name.startswith(b'system.posix_acl'):
            value = _acl(value)
        inodes[ino]['xattrs'][record.escape(name)] = value.hex()


def _acl(value):
    """The kernel says -1 where an entry names nobody; debugfs says 0."""
    out = value[:4]
    for tag, permissions, who in struct.iter_unpack('<HHI', value[4:]):
        out += struct.pack('<HHI', tag, permissions, who if tag in (ACL_USER, ACL_GROUP) else 0xFFFFFFFF)
    return out


def _add_content(image, inodes, workdir, block_size):
    small = [ino for ino, entry in inodes.items() if entry['size'] <= record.WHOLE
             and (entry['type'] == 'file' or entry['type'] == 'link' and 'target' not in entry)]
    if small:
        ask(image, ['dump <%d> %s/%d' % (ino, workdir, ino) for ino in small])
    for ino in small:
        with open('%s/%d' % (workdir, ino), 'rb') as content:
            content = content.read()
        entry = inodes[ino]
        if entry['flags'] & INLINE_DATA:
            # debugfs hands out all of i_block; and mke2fs puts a hole of any size into an inode.
            content = content[:entry['size']].ljust(entry['size'], b'\0')
        if entry['type'] == 'link':
            entry['target'] = record.escape(content)
        elif len(content) != entry['size']:
            raise DebugfsError('inode %d: %d bytes dumped of %d' % (ino, len(content), entry['size']))
        else:
            record.hash_content(entry, len(content), None, lambda offset, length, c=content: c[offset:offset + length])
    for entry in inodes.values():
        if entry['type'] == 'file' and entry['size'] > record.WHOLE:
            with open(image, 'rb') as disk:
                read = _mapped_reader(disk, entry['_map'], block_size)
                record.hash_content(entry, entry['size'], entry['data'], read)


def _mapped_reader(disk, blocks, block_size):
    """read(offset, length) through a block map; what is not mapped reads as zeros."""
    where = {logical + n: physical + n for logical, physical, count in blocks for n in range(count)}

    def read(offset, length):
        out = bytearray(length)
        at = 0
        while at < length:
            block, within = divmod(offset + at, block_size)
            count = min(block_size - within, length - at)
            if block in where:
                disk.seek(where[block] * block_size + within)
                out[at:at + count] = disk.read(count)
            at += count
        return bytes(out)
    return read
