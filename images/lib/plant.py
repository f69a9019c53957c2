#!/usr/bin/env python3
"""plant: puts a tree of trees.py into an image, with mke2fs and debugfs.

  plant.py spread DIR BLOCK_SIZE TREE [KEY=VALUE...]
      what an ordinary user can make of the tree, for `mke2fs -d DIR`
  plant.py furnish DIR BLOCK_SIZE TREE [KEY=VALUE...]
      all of the tree but its attributes, as root or under fakeroot(1)
  plant.py nodes IMAGE BLOCK_SIZE TREE [KEY=VALUE...]
      what takes root otherwise: devices; and flags and preallocated blocks
  plant.py settle IMAGE BLOCK_SIZE TREE [KEY=VALUE...]
      owners, modes, times and attributes of every inode in use

mke2fs copies owners and change times from DIR, so both are set anew here: the
image must not depend on who made it, or when.
"""

import os
import socket
import stat
import sys
import tempfile

sys.dont_write_bytecode = True
import ext  # noqa: E402
import trees  # noqa: E402

TYPES = {'file': stat.S_IFREG, 'dir': stat.S_IFDIR, 'link': stat.S_IFLNK, 'fifo': stat.S_IFIFO,
         'sock': stat.S_IFSOCK, 'chr': stat.S_IFCHR, 'blk': stat.S_IFBLK}


def main(command, where, block_size, name, *options):
    tree = trees.Tree(int(block_size))
    trees.TREES[name](tree, **dict(option.split('=', 1) for option in options))
    {'spread': spread, 'furnish': furnish, 'nodes': make_nodes, 'settle': settle}[command](tree, where)


def spread(tree, top):
    os.mkdir(top)
    os.chdir(top)
    for node in tree.nodes[1:]:
        path = node.path[1:]
        if node.kind == 'dir':
            os.mkdir(path)
        elif node.kind == 'file':
            with open(path, 'wb') as file:
                for offset, part in node.parts:
                    file.seek(offset)
                    file.write(part)
                file.truncate(node.size)
        elif node.kind == 'link':
            os.symlink(node.target, path)
        elif node.kind == 'hard':
            os.link(node.target[1:], path)
        elif node.kind == 'fifo':
            os.mkfifo(path)
        elif node.kind == 'sock':
            with socket.socket(socket.AF_UNIX) as listener:
                listener.bind(path)


def furnish(tree, top):
    spread(tree, top)  # and stay there
    for node in reversed(tree.nodes):
        path = node.path[1:] or b'.'
        if node.kind in ('chr', 'blk'):
            os.mknod(path, TYPES[node.kind] | 0o600, os.makedev(*node.rdev))
    for node in reversed(tree.nodes):
        path = node.path[1:] or b'.'
        if node.kind == 'hard':
            continue
        os.lchown(path, node.uid, node.gid)
        if node.kind != 'link':
            os.chmod(path, node.mode)
        # Whole seconds: no format that is made from a folder keeps more.
        os.utime(path, (node.times['atime'][0], node.times['mtime'][0]), follow_symlinks=False)


def make_nodes(tree, image):
    features = ext.super_field(image, 'Filesystem features').split()
    extents = 'extent' in features and 'inline_data' not in features
    script = []
    for node in tree.nodes:
        path = os.fsdecode(node.path)
        if node.kind in ('chr', 'blk'):
            parent, _, name = path.rpartition('/')
            major, minor = node.rdev
            script += ['cd %s' % (parent or '/'), 'mknod %s %s %d %d' % (name, node.kind[0], major, min(minor, 255))]
            if major > 255 or minor > 255:  # the newer form; debugfs itself stops at 65535
                script += ['sif %s block[0] 0' % name,
                           'sif %s block[1] %d' % (name, minor & 0xFF | major << 8 | (minor & ~0xFF) << 12)]
        if node.prealloc and extents:
            start, end = (offset // tree.block_size for offset in node.prealloc)
            script += ['fallocate %s %d %d' % (path, start, end - 1), 'sif %s size %d' % (path, node.size)]
    flagged = [node for node in tree.nodes if node.flags]
    answers = ext.ask(image, ['stat %s' % os.fsdecode(node.path) for node in flagged]) if flagged else []
    for node, answer in zip(flagged, answers):
        flags = int(answer.split(b'Flags: 0x')[1].split()[0], 16)
        script.append('sif %s flags 0x%x' % (os.fsdecode(node.path), flags | node.flags))
    if script:
        ext.ask(image, script, write=True)


def settle(tree, image):
    inos = {}
    for path, ino in ext.walk(image):
        inos.setdefault(path, ino)
    nodes = {node.path: node for node in tree.nodes if node.kind != 'hard'}
    nodes.setdefault(b'/lost+found', trees.Node(b'/lost+found', 'dir', 0o700))
    wide = int(ext.super_field(image, 'Inode size') or 128) > 128
    with tempfile.TemporaryDirectory(prefix='plant.') as workdir:
        values, script = [], []
        for path, node in nodes.items():
            for name, value in node.xattrs.items():
                values.append(value)
                script.append('ea_set -f %s/%d <%d> "%s"' % (workdir, len(values) - 1, inos[path], name))
        for n, value in enumerate(values):
            with open('%s/%d' % (workdir, n), 'wb') as file:
                file.write(value)
        if script:
            ext.ask(image, script, write=True)
    script = []
    for path, node in nodes.items():
        if path in inos:  # there may be no lost+found
            script += _inode(inos[path], node, wide)
    ext.ask(image, script, write=True)


def _inode(ino, node, wide):
    yield 'sif <%d> mode 0%o' % (ino, TYPES[node.kind] | node.mode)
    yield 'sif <%d> uid %d' % (ino, node.uid)
    yield 'sif <%d> gid %d' % (ino, node.gid)
    for name in ('atime', 'mtime', 'ctime') + (('crtime',) if wide else ()):
        seconds, nanoseconds = node.times.get(name, (trees.EPOCH, 0))
        low = seconds & 0xFFFFFFFF
        yield 'sif <%d> %s 0x%x' % (ino, name, low)
        if wide:
            # The kernel's rule: low 32 bits with their sign, plus two more bits beside the nanoseconds.
            signed = low - ((low >> 31) << 32)
            epoch = (seconds - signed) >> 32
            yield 'sif <%d> %s_extra 0x%x' % (ino, name, nanoseconds << 2 | epoch & 3)


if __name__ == '__main__':
    try:
        main(*sys.argv[1:])
    except ext.DebugfsError as error:
        sys.exit('plant: %s' % error)
