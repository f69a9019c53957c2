"""trees: what the test images hold, before any filesystem sees it.

A `Tree` is a list of `Node`s; each function of TREES builds one. Contents are
pseudo random bytes seeded by the path, times and owners are counted up, so a
tree is the same on every machine and in every year.
"""

import dataclasses
import hashlib
import struct

EPOCH = 1_700_000_000  # 2023-11-14; the `now` of all images
KiB, MiB, GiB = 1 << 10, 1 << 20, 1 << 30
IMMUTABLE, APPEND, NODUMP, NOATIME, VERITY, CASEFOLD = 0x10, 0x20, 0x40, 0x80, 0x100000, 0x40000000


@dataclasses.dataclass
class Node:
    """One name. Times are (seconds, nanoseconds)."""
    path: bytes
    kind: str                       # as in record.py, or 'hard': one more name of the node at `target`
    mode: int = 0o644
    uid: int = 0
    gid: int = 0
    size: int = 0
    parts: list = dataclasses.field(default_factory=list)       # content: [(offset, bytes)]
    target: bytes = b''
    rdev: tuple = (0, 0)
    times: dict = dataclasses.field(default_factory=dict)
    xattrs: dict = dataclasses.field(default_factory=dict)
    flags: int = 0                  # inode flags to add
    prealloc: tuple = ()            # (start, end) in bytes


class Tree:
    """A list of nodes; parents must be added before children."""

    def __init__(self, block_size=4096):
        self.block_size = block_size
        self.nodes = []
        self.add('/', 'dir', 0o755)

    def add(self, path, kind, mode=0o644, **meta):
        path = path if isinstance(path, bytes) else path.encode()
        serial = len(self.nodes)
        times = {'atime': (EPOCH + 3 * serial, 0), 'mtime': (EPOCH + 61 * serial, serial * 7_654_321 % 10**9),
                 'ctime': (EPOCH + 61 * serial + 1, serial), 'crtime': (EPOCH - serial, 999_999_999 - serial)}
        node = Node(path, kind, mode, **{**meta, 'times': {**times, **meta.get('times', {})}})
        self.nodes.append(node)
        return node

    def dir(self, path, mode=0o755, **meta):
        return self.add(path, 'dir', mode, **meta)

    def file(self, path, content=None, mode=0o644, size=None, **meta):
        """`content` is bytes, text, a list of (offset, bytes), or None for `size` seeded bytes."""
        if isinstance(content, str):
            content = content.encode()
        if content is None:
            content = noise(path, size or 0)
        parts = content if isinstance(content, list) else [(0, content)]
        end = max((offset + len(part) for offset, part in parts), default=0)
        return self.add(path, 'file', mode, parts=parts, size=end if size is None else size, **meta)

    def link(self, path, target, **meta):
        target = target if isinstance(target, bytes) else target.encode()
        return self.add(path, 'link', 0o777, target=target, **meta)

    def hard(self, path, to):
        self.add(path, 'hard', target=to if isinstance(to, bytes) else to.encode())


def noise(seed, length):
    """`length` bytes that differ for each seed and hold no long run of zeros."""
    return hashlib.shake_128(seed if isinstance(seed, bytes) else seed.encode()).digest(length)


def acl(*entries):
    """A POSIX ACL as the kernel hands it out: entries are (tag, permissions, id)."""
    return struct.pack('<I', 2) + b''.join(struct.pack('<HHI', *entry) for entry in entries)


USER_OBJ, USER, GROUP_OBJ, GROUP, MASK, OTHER, NOBODY = 1, 2, 4, 8, 16, 32, 0xFFFFFFFF


def zoo(tree):
    """One of everything that every ext filesystem can hold; about 2 MiB."""
    tree.file('/hello.txt', 'Hello from the other side of a disk image.\n')
    tree.file('/empty', b'')
    _files(tree)
    _names(tree)
    _links(tree)
    _special(tree)
    _times(tree)
    _xattrs(tree)
    _holes(tree)
    deep = '/deep'
    tree.dir(deep)
    for level in range(20):
        deep += '/level-%02d' % level
        tree.dir(deep)
    tree.file(deep + '/bottom', 'You can stop here.\n')
    tree.dir('/many')
    for n in range(120):
        tree.file('/many/file-%03d' % n, 'number %d\n' % n)


def _files(tree):
    tree.dir('/files')
    block = tree.block_size
    sizes = {1, 59, 60, 61, 100, 1023, 1024, 1025, 4095, 4096, 4097, 12 * KiB, 12 * KiB + 1, 65535, 65536, 65537,
             block - 1, block, block + 1, 300_000}
    for size in sorted(sizes):
        tree.file('/files/size-%d' % size, size=size)
    tree.dir('/modes')
    for mode in (0o000, 0o111, 0o400, 0o644, 0o777, 0o1644, 0o2755, 0o4755, 0o6755, 0o7777):
        tree.file('/modes/file-%04o' % mode, 'mode %04o\n' % mode, mode)
    for mode in (0o000, 0o700, 0o1777, 0o2775, 0o3777):
        tree.dir('/modes/dir-%04o' % mode, mode)
    tree.dir('/owners')
    for uid, gid in ((1, 2), (1000, 100), (65534, 65534), (65535, 65536), (65536, 65535), (100_000, 4_000_000_000),
                     (4_294_967_294, 4_294_967_294)):
        tree.file('/owners/%d-%d' % (uid, gid), 'owner\n', uid=uid, gid=gid)
    tree.dir('/owners/dir', uid=70_000, gid=80_000)
    tree.link('/owners/link', 'dir', uid=70_001, gid=80_001)


def _names(tree):
    tree.dir('/names')
    names = [b'.hidden', b'...', b'-dash', b' leading', b'trailing ', b'two  blanks', b'tab\there', b'new\nline',
             b'quote"', b"apostrophe'", b'back\\slash', b'star*', b'per%20cent', b'semi;colon', b'equal=sign', b'hash#',
             'caf\u00e9-nfc'.encode(), 'cafe\u0301-nfd'.encode(), '\u65e5\u672c\u8a9e'.encode(), '\U0001F984'.encode(),
             '\u0440\u0443\u0441\u0441\u043a\u0438\u0439'.encode(), b'latin1-\xe9', b'\xff\xfe', b'\x01control\x7f',
             b'a', b'A', b'con.txt', b'x' * 254, b'y' * 255, '\u00e9'.encode() * 127]
    for name in names:
        tree.file(b'/names/' + name, b'I am called ' + name + b'\n')
    tree.dir(b'/names/' + b'd' * 255)
    tree.file(b'/names/' + b'd' * 255 + b'/' + b'f' * 255, 'long\n')


def _links(tree):
    tree.dir('/links')
    tree.file('/links/hard-1', 'three names\n')
    tree.hard('/links/hard-2', '/links/hard-1')
    tree.hard('/names/hard-3', '/links/hard-1')
    targets = {'to-file': '../hello.txt', 'to-dir': '../files', 'absolute': '/hello.txt', 'dangling': 'nowhere/at/all',
               'loop-a': 'loop-b', 'loop-b': 'loop-a', 'self': 'self', 'dot': '.', 'root': '/'}
    for name, target in targets.items():
        tree.link('/links/' + name, target)
    tree.link('/links/bytes', b'\xff \n\xc3\xa9')
    for length in (1, 58, 59, 60, 61, 154, 155, 156, 200, 1000) + ((4000,) if tree.block_size > 4000 else ()):
        tree.link('/links/length-%d' % length, (b'component/' * 400)[:length - 1] + b'z')


def _special(tree):
    tree.dir('/special')
    tree.add('/special/fifo', 'fifo', 0o640)
    tree.add('/special/socket', 'sock', 0o755, uid=33)
    devices = [('null', 'chr', 1, 3), ('sda', 'blk', 8, 0), ('zero-minor', 'chr', 255, 0), ('minor-255', 'blk', 255, 255),
               ('minor-256', 'chr', 1, 256), ('major-256', 'blk', 256, 1), ('nvme', 'blk', 259, 70_000),
               ('largest', 'chr', 4095, 1_048_575)]
    for name, kind, major, minor in devices:
        tree.add('/special/' + name, kind, 0o660, gid=6, rdev=(major, minor))


def _times(tree):
    tree.dir('/times')
    moments = {'1901': (-2**31, 0), '1901-ns': (-2**31, 999_999_999), '1969': (-1, 0), '1969-ns': (-1, 1), '1970': (0, 0),
               '1970-ns': (0, 1), '2000': (946_684_800, 123_456_789), '2038-last': (2**31 - 1, 999_999_999),
               '2038-next': (2**31, 0), '2100': (4_102_444_800, 5), '2106': (2**32, 1), '2174': (3 * 2**31, 0),
               '2242': (2**33, 0), '2400': (13_569_465_600, 7), '2446-last': (15_032_385_535, 999_999_999)}
    for name, moment in moments.items():
        tree.file('/times/' + name, name + '\n', times=dict.fromkeys(('atime', 'mtime', 'ctime', 'crtime'), moment))
    tree.dir('/times/dir', times={'mtime': (-86_400, 42)})
    tree.link('/times/link', '1969', times={'mtime': (4_102_444_800, 77)})


def _xattrs(tree):
    tree.dir('/xattr', xattrs={'user.on': b'a directory'})
    tree.file('/xattr/none', 'none\n')
    tree.file('/xattr/small', 'small\n', xattrs={'user.a': b'1'})
    tree.file('/xattr/empty', 'empty\n', xattrs={'user.empty': b''})
    tree.file('/xattr/binary', 'binary\n', xattrs={'user.binary': bytes(range(40))})
    tree.file('/xattr/block', 'block\n', xattrs={'user.large': noise('large', 500), 'user.small': b'small'})
    tree.file('/xattr/many', 'many\n', xattrs={'user.n%02d' % n: b'value %d' % n for n in range(20)})
    tree.file('/xattr/long-name', 'name\n', xattrs={'user.' + 'n' * 250: b'long'})
    tree.file('/xattr/spaces', 'all\n', xattrs={
        'trusted.secret': b'root only', 'security.selinux': b'system_u:object_r:etc_t:s0\0', 'user.mime': b'text/plain'})
    tree.link('/xattr/link', 'small', xattrs={'trusted.on': b'a link'})
    # Revision 2, effective; CAP_NET_RAW permitted. Revision 3 adds the uid that is root in the namespace.
    tree.file('/xattr/ping', 'capable\n', 0o755,
              xattrs={'security.capability': struct.pack('<5I', 0x0200_0001, 1 << 13, 0, 0, 0)})
    tree.file('/xattr/ping3', 'capable\n', 0o755,
              xattrs={'security.capability': struct.pack('<6I', 0x0300_0001, 1 << 13, 0, 0, 0, 100_000)})
    tree.dir('/acl')
    access = acl((USER_OBJ, 6, NOBODY), (USER, 4, 1000), (USER, 6, 100_000), (GROUP_OBJ, 4, NOBODY), (GROUP, 2, 50),
                 (MASK, 6, NOBODY), (OTHER, 0, NOBODY))
    tree.file('/acl/file', 'user 1000 may read\n', 0o660, xattrs={'system.posix_acl_access': access})
    default = acl((USER_OBJ, 7, NOBODY), (USER, 7, 1000), (GROUP_OBJ, 5, NOBODY), (MASK, 7, NOBODY), (OTHER, 0, NOBODY))
    tree.dir('/acl/dir', 0o770, xattrs={'system.posix_acl_access': default, 'system.posix_acl_default': default})
    tree.dir('/flags')
    for name, flags in (('immutable', IMMUTABLE), ('append', APPEND), ('nodump-noatime', NODUMP | NOATIME)):
        tree.file('/flags/' + name, name + '\n', flags=flags)


def _holes(tree):
    block = max(tree.block_size, 4096)
    tree.dir('/holes')
    tree.file('/holes/start', [(3 * block, noise('start', 100))])
    tree.file('/holes/middle', [(0, noise('middle', block)), (9 * block, noise('middle2', block))])
    tree.file('/holes/end', [(0, noise('end', block + 5))], size=11 * block + 7)
    tree.file('/holes/all', [], size=MiB)
    tree.file('/holes/sieve', sieve('sieve', tree.block_size, min(40, MiB // 2 // tree.block_size)))
    tree.dir('/prealloc')
    tree.file('/prealloc/middle', [(0, noise('p', block))], size=8 * block, prealloc=(2 * block, 6 * block))
    tree.file('/prealloc/beyond', [(0, noise('q', 100))], size=100, prealloc=(block, 4 * block))
    tree.file('/prealloc/whole', [], size=5 * block, prealloc=(0, 5 * block))


def sieve(seed, block, count):
    """`count` blocks of data with a hole after each."""
    return [(2 * n * block, noise('%s %d' % (seed, n), block)) for n in range(count)]


def sieves(tree, count=1500, pieces=1000):
    """Files of many extents. `count` for the first; a second whose holes are preallocated."""
    tree.file('/sieve', sieve('sieve', tree.block_size, int(count)))
    tree.file('/few', sieve('few', tree.block_size, 6))
    tree.file('/pieces', sieve('pieces', tree.block_size, int(pieces)), prealloc=(0, 100 * tree.block_size))


def big(tree):
    """Files beyond 4 GiB, with data on both sides of each boundary of a block map."""
    block = tree.block_size
    per = block // 4
    starts = {0, 11, 12, 12 + per - 1, 12 + per, 12 + 2 * per, 12 + per + per * per - 1, 12 + per + per * per,
              12 + 2 * per + per * per, 4 * GiB // block - 1, 4 * GiB // block, 2 * GiB // block - 1}
    last = 5 * GiB // block - 1
    parts = [(start * block, noise('big %d' % start, block)) for start in sorted(starts) if start < last]
    tree.file('/big', parts + [(last * block + 1, noise('tail', 1000))])
    tree.file('/hole', [], size=6 * GiB + 1)
    tree.file('/end', [(4 * GiB + 5, b'the end')])
    tree.file('/small', 'small\n')


def names(tree, count=3000, length=40):
    """One directory of `count` names (of four files), one small one, one with few but long names."""
    tree.dir('/dir')
    for n in range(4):
        tree.file('/dir/file-%d' % n, 'file %d\n' % n)
    for n in range(int(count)):
        name = 'name-%06d-' % n
        tree.hard('/dir/' + name + 'x' * (int(length) - len(name)), '/dir/file-%d' % (n % 4))
    tree.dir('/dir/sub')
    tree.file('/dir/sub/inside', 'inside\n')
    tree.dir('/long')
    for n in range(60):
        tree.file('/long/%03d' % n + '-long' * 50, 'long %d\n' % n)
    tree.dir('/small')
    tree.file('/small/only', 'only\n')


def folded(tree):
    """A directory that ignores case, with names in several scripts; and one that does not."""
    words = ['README', 'Makefile', 'Stra\u00dfe', '\u00c9cole', 'cafe\u0301', '\u0130stanbul', '\u03a3\u03af\u03c3\u03c5\u03c6\u03bf\u03c2',
             '\u041c\u043e\u0441\u043a\u0432\u0430', '\u65e5\u672c', 'MixedCase.TXT', 'lower', 'UPPER']
    for top, flags in (('/folded', CASEFOLD), ('/plain', 0)):
        tree.dir(top, flags=flags)
        for word in words:
            tree.file('%s/%s' % (top, word), word + '\n')
    tree.dir('/folded/Sub', flags=CASEFOLD)
    tree.file('/folded/Sub/Inner', 'inner\n')
    tree.dir('/many', flags=CASEFOLD)
    for n in range(600):
        tree.hard('/many/Name-%04d-%s' % (n, 'Xy' * 20), '/plain/lower')


def inline(tree):
    """Sizes on both sides of what fits into an inode, and directories that grew out of one."""
    tree.dir('/files')
    for size in (0, 1, 59, 60, 61, 62, 100, 120, 140, 150, 155, 160, 161, 170, 200, 900, 5000):
        tree.file('/files/size-%d' % size, size=size)
    tree.file('/files/with-xattr', size=80, xattrs={'user.a': b'shares the room'})
    tree.file('/files/with-large-xattr', size=50, xattrs={'user.large': noise('large', 300)})
    tree.file('/files/hole', [], size=50)
    for count in (0, 1, 3, 4, 5, 8, 10, 12, 60):
        tree.dir('/dir-%d' % count)
        for n in range(count):
            tree.file('/dir-%d/n%02d' % (count, n), 'n%d\n' % n)
    tree.dir('/dir-names')
    tree.file('/dir-names/' + 'l' * 120, 'long\n')
    tree.dir('/dir-sub')
    tree.dir('/dir-sub/sub')
    tree.file('/dir-sub/sub/file', 'file\n')
    for length in (1, 59, 60, 61, 100, 150, 160, 200, 900):
        tree.link('/link-%d' % length, 'L' * length)


def attributes(tree):
    """For ea_inode: values beyond a block; and two files that will share one attribute block."""
    tree.file('/large', 'large\n', xattrs={'user.large': noise('40k', 40_000), 'user.small': b'small'})
    tree.file('/two', 'two\n', xattrs={'user.one': noise('one', 9_000), 'user.two': noise('two', 65_536)})
    tree.file('/same', 'same\n', xattrs={'user.one': noise('one', 9_000)})
    tree.file('/none', 'none\n')
    tree.dir('/dir', xattrs={'user.large': noise('dir', 5_000)})


def shared(tree):
    """Files whose attribute blocks a recipe makes one."""
    for n in range(3):
        tree.file('/shared-%d' % n, 'shared\n', xattrs={'user.value': noise('shared', 600)} if n == 0 else {})
    tree.file('/own', 'own\n', xattrs={'user.value': noise('own', 600)})


def flagged(tree):
    """A file marked as protected by fs-verity, next to plain ones."""
    tree.file('/verity', size=5000, flags=VERITY)
    tree.file('/plain', size=5000)
    tree.dir('/dir')
    tree.file('/dir/inside', 'inside\n')


def empty(tree):
    """Nothing but the root and what mkfs puts there."""


def few(tree):
    """A few files, for images whose point is elsewhere."""
    tree.file('/hello.txt', 'Hello from the other side of a disk image.\n')
    tree.dir('/dir')
    tree.file('/dir/noise', size=50_000)
    tree.link('/dir/link', '../hello.txt')


def eve(tree):
    """What is there before the journal changes it: a directory that goes, a file that changes."""
    tree.file('/hello.txt', 'Hello from the other side of a disk image.\n')
    tree.file('/touched', 'my times change\n')
    tree.file('/removed', size=20_000)
    tree.dir('/old')
    for n in range(8):
        tree.hard('/old/name-%d' % n, '/hello.txt')
    tree.dir('/kept')
    tree.file('/kept/file', size=9_000)


def disc(tree):
    """What Rock Ridge can hold, apart from what has a tree of its own below."""
    tree.file('/hello.txt', 'Hello from the other side of a disk image.\n')
    tree.file('/empty', b'')
    tree.dir('/files')
    for size in (1, 2047, 2048, 2049, 4096, 65_537, 300_000):
        tree.file('/files/size-%d' % size, size=size)
    tree.dir('/modes', 0o1777)
    for mode in (0o400, 0o444, 0o644, 0o755, 0o2755, 0o4755, 0o7777):
        tree.file('/modes/file-%04o' % mode, 'mode %04o\n' % mode, mode)
    tree.file('/modes/owned', 'owned\n', uid=100_000, gid=4_000_000_000)
    tree.dir('/names')
    for name in ('UPPER.TXT', 'lower.txt', 'Mixed.Case.Name', '.hidden', 'no-extension', 'two  blanks', 'plus+minus',
                 'caf\u00e9', '\u65e5\u672c\u8a9e', 'same-name-but-longer-than-31-characters-1',
                 'same-name-but-longer-than-31-characters-2', 'n' * 100, 'semi;1', 'back\\slash', 'per%20cent'):
        tree.file('/names/' + name, 'I am called %s\n' % name)
    tree.dir('/links')
    tree.file('/links/hard-1', 'two names\n')
    tree.hard('/links/hard-2', '/links/hard-1')
    for name, target in {'file': '../hello.txt', 'dir': '../files', 'absolute': '/hello.txt', 'root': '/', 'dot': '.',
                         'dotdot': '..', 'up': '../../..', 'mixed': './a/../b/./c', 'double': 'a//b',
                         'dangling': 'nowhere'}.items():
        tree.link('/links/' + name, target)
    tree.dir('/special')
    tree.add('/special/fifo', 'fifo', 0o640)
    for name, kind, major, minor in (('null', 'chr', 1, 3), ('sda1', 'blk', 8, 1), ('nvme', 'blk', 259, 70_000)):
        tree.add('/special/' + name, kind, 0o660, gid=6, rdev=(major, minor))
    tree.dir('/times')
    for name, second in (('1960', -302_443_200), ('1969', -1), ('1970', 0), ('2000', 951_782_400), ('2038', 2**31),
                         ('2099', 4_070_908_800)):
        tree.file('/times/' + name, name + '\n', times={'mtime': (second, 0)})


def files(tree):
    """The files and names of `disc`: what needs no Rock Ridge."""
    disc(tree)
    drop = (b'/links', b'/special', b'/names/semi')
    tree.nodes = [node for node in tree.nodes if node.path.isascii() and not node.path.startswith(drop)]


def short(tree):
    """Names of eight and three characters; no longer ones, so that no tool has to invent any."""
    for name in ('README.TXT', 'A', 'NOEXT', 'ARCHIVE.ZIP', 'UNDER_SC.ORE', '12345678.123'):
        tree.file('/' + name, 'I am called %s\n' % name)
    tree.dir('/DIR')
    tree.dir('/DIR/SUB')
    tree.file('/DIR/SUB/DEEP.TXT', size=5000)
    tree.file('/EMPTY', b'')
    tree.file('/BIG.DAT', size=100_000)


def wide(tree):
    """Names in several scripts, up to Joliet's 64 and its longer 103 characters."""
    for name in ('caf\u00e9.txt', '\u65e5\u672c\u8a9e.txt', '\u0420\u0443\u0441\u0441\u043a\u0438\u0439', 'MixedCase.Txt', 'several.dots.in.name',
                 'with space', 'j' * 60 + '.txt', 'l' * 99 + '.txt'):
        tree.file('/' + name, 'I am called %s\n' % name)
    tree.dir('/\u00fcml\u00e4ut')
    tree.file('/\u00fcml\u00e4ut/inner', 'inner\n')


def astral(tree):
    """A name outside the Basic Multilingual Plane."""
    tree.file('/\U0001F984.txt', 'unicorn\n')
    tree.file('/plain.txt', 'plain\n')


def deep(tree):
    """Deeper than the eight levels of ISO 9660, in two places, one inside the other."""
    path = ''
    for level in range(1, 21):
        path += '/level%02d' % level
        tree.dir(path)
        tree.file(path + '/file', 'level %d\n' % level)
    path = '/level01/level02/level03/level04/level05/level06/level07'
    tree.dir(path + '/other')
    tree.dir(path + '/other/more')
    tree.file(path + '/other/more/file', 'more\n')
    tree.dir(path + '/level08/other')
    tree.file(path + '/level08/other/file', 'the same name elsewhere\n')


def lengthy(tree, links=1000):
    """Names and targets that do not fit into one directory record. genisoimage cuts long targets off, or never ends."""
    for length in (1, 100, 150, 180, 190, 200, 220, 240, 250, 255):
        tree.file('/' + ('%03d-' % length + 'n' * 255)[:length], 'length %d\n' % length)
        tree.dir('/' + ('%03d-' % length + 'd' * 255)[:length] if length > 1 else '/d')
    for length in (100, 200, 248, 249, 250, 255, int(links)):
        tree.link('/short-%d' % length, ('component/' * 400)[:length - 1] + 'z')
        tree.link('/one-%d' % length, 'c' * min(length, 255))
    tree.link('/' + 's' * 240, '../' * 60 + 'x' * 20)
    tree.link('/from-root', '/' + 'r' * 100 + '/./../' + 'q' * min(200, int(links) - 150))


def prose(tree):
    """Files that compress well, next to some that do not."""
    for size in (10, 1000, 32_768, 40_000, 65_536, 200_000, 1_000_000):
        line = b'The quick brown fox jumps over the lazy dog, and the disk spins on. '
        tree.file('/text-%d' % size, (line * (size // len(line) + 1))[:size])
    tree.file('/noise', size=100_000)
    tree.file('/zeros', bytes(300_000))
    tree.file('/half', noise('half', 70_000) + bytes(70_000) + b'end')
    tree.file('/empty', b'')


def crowd(tree, count=600):
    """A directory of many sectors."""
    tree.dir('/dir')
    for n in range(int(count)):
        tree.file('/dir/file number %04d.text' % n, 'number %d\n' % n)
    tree.file('/last', 'last\n')


def huge(tree):
    """A file of more than 4 GiB, which takes two extents."""
    gap = 4 * GiB - 4096
    tree.file('/huge', [(0, noise('begin', 4096)), (gap, noise('middle', 8192)), (4 * GiB + MiB, b'the end')])
    tree.file('/small', 'small\n')


TREES = {function.__name__: function for function in
         (zoo, sieves, big, names, folded, inline, attributes, shared, flagged, empty, few, eve,
          disc, files, short, wide, astral, deep, lengthy, prose, crowd, huge)}
