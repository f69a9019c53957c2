"""iso: reads ISO 9660 images by letting xorriso(1) extract them.

The extraction runs under fakeroot(1), so owners and devices survive without
root. What an extraction cannot carry is left out of the entries: inode numbers,
links, change times, times of symbolic links; and, in the trees without Rock
Ridge, owners and modes, which are the reader's to choose.
"""

import json
import os
import re
import shutil
import subprocess
import sys
import tempfile

import record

TRUTH = os.path.join(os.path.dirname(os.path.dirname(os.path.realpath(__file__))), 'truth')
SECTOR = 2048
VIEWS = {  # how xorriso is told which names to read
    'any': [],
    'joliet': ['-read_fs', 'norock'],
    'plain': ['-read_fs', 'ecma119', '-ecma119_map', 'lowercase'],
    'unmapped': ['-read_fs', 'ecma119', '-ecma119_map', 'unmapped']}
KEYS = {'path', 'type', 'mode', 'uid', 'gid', 'size', 'rdev', 'mtime_s', 'mtime_ns', 'target', 'sha256'}


class XorrisoError(Exception):
    """xorriso complained; the text is its own."""


def tree(image, view, sector=None):
    """The entries of one of the name trees of an image, of the session at `sector` if given."""
    workdir = tempfile.mkdtemp(prefix='truth.')
    try:
        load = ['-load', 'sbsector', str(sector)] if sector is not None else []
        script = '"$@" >"$0.log" 2>&1 && exec "%s" "%s" dir "$0"' % (sys.executable, TRUTH)
        done = subprocess.run(
            ['fakeroot', 'sh', '-c', script, workdir + '/tree', 'xorriso', '-abort_on', 'FAILURE', *VIEWS[view],
             '-osirrox', 'device_files', *load, '-indev', 'stdio:' + image, '-extract', '/', workdir + '/tree'],
            env={**os.environ, 'LC_ALL': 'C.UTF-8'}, stdout=subprocess.PIPE, check=False)
        if done.returncode:
            with open(workdir + '/tree.log', encoding='utf-8', errors='replace') as log:
                raise XorrisoError('%s: %s' % (image, log.read()[-1000:]))
    finally:
        subprocess.run(['chmod', '-R', 'u+rwX', workdir], check=False)
        shutil.rmtree(workdir)
    for line in done.stdout.splitlines():
        entry = {key: value for key, value in json.loads(line).items() if key in KEYS}
        if entry['type'] == 'link':
            entry.pop('mtime_s'), entry.pop('mtime_ns')
        if entry['type'] == 'dir':
            entry.pop('size')  # that of the extracted one
        if view != 'any':
            for key in ('mode', 'uid', 'gid'):
                entry.pop(key)
        if 'rdev' in entry:
            entry['rdev'] = _device(*entry['rdev'])
        yield {**entry, 'path': record.unescape(entry['path'])}


def _device(major, minor):
    """PN holds two numbers. xorriso makes them one; if the first was not zero, they are major and minor."""
    high, low = divmod(os.makedev(major, minor), 1 << 32)
    return [high, low] if high else [major, minor]


def large(image, path):
    """The entry, but for its times and owners, of a file too large to extract: read where xorriso says it lies."""
    done = subprocess.run(['xorriso', '-indev', 'stdio:' + image, '-find', path, '-exec', 'report_lba'],
                          stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, check=True)
    pattern = rb"^File data lba:\s*\d+ ,\s*(\d+) ,\s*(\d+) ,\s*(\d+) , '%s'$" % re.escape(path.encode())
    found = [tuple(map(int, match)) for match in re.findall(pattern, done.stdout, re.M)]
    places = [lba * SECTOR for lba, _, _ in found]
    sizes = [blocks * SECTOR for _, blocks, _ in found]
    total = found[0][2]
    starts = [sum(sizes[:n]) for n in range(len(sizes))]
    with open(image, 'rb') as disc:
        def read(offset, length):
            out = b''
            while length:
                n = max(n for n, start in enumerate(starts) if start <= offset)
                count = min(length, starts[n] + sizes[n] - offset)
                disc.seek(places[n] + offset - starts[n])
                out += disc.read(count)
                offset, length = offset + count, length - count
            return out
        data = []
        for where, start, length in zip(places, starts, sizes):
            at = where
            while at < where + length:
                try:
                    begin = os.lseek(disc.fileno(), at, os.SEEK_DATA)
                except OSError:
                    break
                at = os.lseek(disc.fileno(), begin, os.SEEK_HOLE)
                data.append((start + begin - where, start + min(at, where + length) - where))
        entry = {'path': path.encode(), 'type': 'file', 'size': total}
        record.hash_content(entry, total, record.merge([pair for pair in data if pair[0] < total], total), read)
    return entry
