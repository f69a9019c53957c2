#!/usr/bin/env python3
"""Makes a volume as EncFS 1.1 to 1.3 made them, which no program does any more. Needs openssl(1).

    tests/encfs_old.py 4|5|5-blowfish|5-stream DIR [PASSWORD]

Its password is `pass word`, if no other is given. Beside it, in DIR.plain, is the same tree as it was before it was encrypted.

The format is told by the source of EncFS 1.9.5: FileUtils.cpp (readV4Config, readV5Config: which values a configuration has), ConfigVar.cpp (how they
are written), SSL_Cipher.cpp (keys, vectors, checksums, the mode for short data), BlockNameIO.cpp, StreamNameIO.cpp, NameIO.cpp (names, and paths that
links lead to), CipherFileIO.cpp, MACFileIO.cpp (headers and blocks). That it was understood, tests/scripts/encfs.sh asks the encfs of the day.
"""
import hashlib, hmac, os, subprocess, sys

KINDS = {  # cipher, its version, bits of the key, block, names, their version, unique headers, chained, checksum, random bytes
    "4": ("aes", 2, 128, 512, "stream", 1, 0, 0, 0, 0),
    "5": ("aes", 3, 192, 1024, "block", 3, 1, 1, 8, 2),
    "5-blowfish": ("blowfish", 2, 128, 512, "block", 2, 1, 1, 4, 0),
    "5-stream": ("aes", 2, 256, 256, "stream", 2, 1, 1, 0, 0),
}
LETTERS = ",-0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz"
CONTENT = b"".join(b"line %d\n" % number for number in range(900))
TREE = {
    b"directory": None,
    b"directory/some file": CONTENT,
    b"directory/exactly": CONTENT[:1014 * 3],
    b"directory/below": None,
    b"directory/below/\xc3\xbcn\xc3\xafc\xc3\xb6d\xc3\xa9": b"a few bytes",
    b"empty": b"",
    b"n" * 100: b"long",
}
LINKS = {b"relative": b"directory/some file", b"absolute": b"/etc/passwd", b"directory/up": b"../empty"}


class Cipher:
    def __init__(self, name, version, key):
        self.size = 16 if name == "aes" else 8
        self.key, self.iv = key[:-self.size], key[-self.size:]
        self.version = version
        self.openssl = f"aes-{8 * len(self.key)}" if name == "aes" else "bf"

    def run(self, mode, data, seed):
        command = ["openssl", "enc", f"-{self.openssl}-{mode}", "-nopad", "-K", self.key.hex(), "-iv", self.vector(seed).hex()]
        if self.openssl == "bf":
            command += ["-provider", "legacy", "-provider", "default"]
        return subprocess.run(command, input=data, stdout=subprocess.PIPE, check=True).stdout if data else b""

    def vector(self, seed):
        if self.version >= 3:
            return hmac.digest(self.key, self.iv + seed.to_bytes(8, "little"), "sha1")[:self.size]
        low = seed & 0xffffffff
        one = (0x060a4011 * low & 0xffffffff).to_bytes(4, "big")
        two = (0x0221040d * (low ^ 0xd3feA11c) & 0xffffffff).to_bytes(4, "big")
        # Which byte of which is mixed into which of the vector.
        mixed = [one[0], two[1], one[2], two[3], two[0], one[1], two[2], one[3],
                 one[3], two[2], one[1], two[0], one[0], two[1], one[2], two[3]]
        return bytes(byte ^ mix for byte, mix in zip(self.iv, mixed))

    def checksum(self, data, chained=None):
        if chained is not None:
            data += chained.to_bytes(8, "little")
        folded = bytearray(8)
        for at, byte in enumerate(hmac.digest(self.key, data, "sha1")[:-1]):
            folded[at % 8] ^= byte
        return int.from_bytes(folded, "big")

    def whole(self, data, seed):
        return self.run("cbc", data, seed)

    def short(self, data, seed):
        data = self.run("cfb", shuffled(data), seed)
        flipped = b"".join(data[at:at + 64][::-1] for at in range(0, len(data), 64))
        return self.run("cfb", shuffled(flipped), (seed + 1) & 0xffffffffffffffff)


def shuffled(data):
    data = bytearray(data)
    for at in range(1, len(data)):
        data[at] ^= data[at - 1]
    return bytes(data)


def fold32(value):
    return (value >> 32) ^ (value & 0xffffffff)


def fold16(value):
    value = fold32(value)
    return (value >> 16) ^ (value & 0xffff)


def written(data):
    bits = int.from_bytes(data, "little")
    return "".join(LETTERS[bits >> at & 63] for at in range(0, 8 * len(data), 6)).encode()


def old_key(password, length):
    """EVP_BytesToKey of OpenSSL with SHA-1, no salt and 16 rounds."""
    key = last = b""
    while len(key) < length:
        last += password
        for _ in range(16):
            last = hashlib.sha1(last).digest()
        key += last
    return key[:length]


def number(value):
    groups = [value & 127]
    while value := value >> 7:
        groups.append(value & 127 | 128)
    return bytes(reversed(groups))


def string(value):
    return number(len(value)) + value


class Volume:
    def __init__(self, kind, dir, password):
        (self.name, version, bits, self.block, self.naming, self.naming_version, self.headers, self.chained, self.mac,
         self.random) = KINDS[kind]
        self.dir = dir
        length = bits // 8 + (16 if self.name == "aes" else 8)
        key = os.urandom(length)
        self.cipher = Cipher(self.name, version, key)
        wrapper = Cipher(self.name, version, old_key(password, length))
        checksum = fold32(wrapper.checksum(key))
        wrapped = checksum.to_bytes(4, "big") + wrapper.short(key, checksum)
        interface = lambda name, current: string(name.encode()) + number(current) + number(0) + number(0)
        values = {"cipher": interface(f"ssl/{self.name}", version), "keySize": number(bits), "blockSize": number(self.block),
                  "keyData": string(wrapped)}
        if kind != "4":
            values |= {"subVersion": number(20040813), "creator": string(b"EncFS 1.3"),
                       "naming": interface(f"nameio/{self.naming}", self.naming_version), "uniqueIV": number(self.headers),
                       "chainedIV": number(self.chained), "externalIV": number(0), "blockMACBytes": number(self.mac),
                       "blockMACRandBytes": number(self.random)}
        with open(os.path.join(dir, f".encfs{kind[0]}".encode()), "wb") as file:
            file.write(number(len(values)) + b"".join(string(name.encode()) + string(value) for name, value in values.items()))

    def encrypt_name(self, name, above, chained):
        """As it is stored, and what names below it depend on."""
        if self.naming == "block":
            padding = self.cipher.size - len(name) % self.cipher.size
            name += bytes([padding]) * padding
        checksum = self.cipher.checksum(name, above if chained else None)
        depends = chained and self.naming_version >= (3 if self.naming == "block" else 2)
        seed = fold16(checksum) ^ (above if depends else 0)
        data = (self.cipher.whole if self.naming == "block" else self.cipher.short)(name, seed)
        return written(fold16(checksum).to_bytes(2, "big") + data), checksum if chained else 0

    def encrypt_path(self, path):
        above, parts = 0, []
        for part in path.split(b"/"):
            if part not in (b"", b".", b".."):
                part, above = self.encrypt_name(part, above, self.chained)
            parts.append(part)
        return b"/".join(parts)

    def encrypt_target(self, target):
        if target.startswith(b"/"):
            return b"+" + self.encrypt_name(target[1:], 0, False)[0]
        return self.encrypt_path(target)

    def encrypt_content(self, content):
        if not content:
            return b""
        own = int.from_bytes(os.urandom(8), "big") | 1 if self.headers else 0
        out = [self.cipher.short(own.to_bytes(8, "big"), 0)] if self.headers else []
        step = self.block - self.mac - self.random
        for at in range(0, len(content), step):
            data = os.urandom(self.random) + content[at:at + step]
            if self.mac:
                data = self.cipher.checksum(data).to_bytes(8, "little")[:self.mac] + data
            encrypt = self.cipher.whole if len(data) == self.block else self.cipher.short
            out.append(encrypt(data, at // step ^ own))
        return b"".join(out)

    def stored(self, path):
        return os.path.join(self.dir, self.encrypt_path(path))


def main():
    kind, dir = sys.argv[1], os.fsencode(sys.argv[2])
    os.makedirs(dir)
    os.makedirs(dir + b".plain")
    volume = Volume(kind, dir, os.fsencode(sys.argv[3]) if len(sys.argv) > 3 else b"pass word")
    for path, content in TREE.items():
        for name, data in [(os.path.join(dir + b".plain", path), content), (volume.stored(path), content and volume.encrypt_content(content))]:
            if content is None:
                os.mkdir(name)
            else:
                with open(name, "wb") as file:
                    file.write(data)
    for path, target in LINKS.items():
        os.symlink(target, os.path.join(dir + b".plain", path))
        os.symlink(volume.encrypt_target(target), volume.stored(path))


main()
