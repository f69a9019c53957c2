//! The same scripts on every kind of tree, and in a directory of the kernel, which knows the right answer.

#![allow(clippy::unwrap_used, clippy::panic, reason = "a test says by a panic what is wrong")]

mod common;

use common::{run, run_kernel, trees};

/// Runs a script everywhere: each must give the answer, and so must the kernel.
fn check(script: &str, answer: &str) {
    let dir = tempfile::tempdir().unwrap();
    assert_eq!(run_kernel(dir.path(), script), answer, "{script:?} in the kernel");
    for (name, tree, _dir) in trees() {
        assert_eq!(run(&*tree, script), answer, "{script:?} in {name}");
    }
}

#[test]
fn names_are_made_once() {
    check("mkdir a; mkdir a", "EEXIST");
    check("touch a; mkdir a", "EEXIST");
    check("mkdir a; ln-s x a", "EEXIST");
    check("touch a; touch b; ln a b", "EEXIST");
    check("mkdir a; touch a", "EISDIR");
    check("mkdir x/y", "ENOENT");
    check("touch a; mkdir a/b", "ENOTDIR");
    check("mkfifo a; lstat a", "p0644 1 0");
    check("touch a; touch a; lstat a", "-0644 1 0");
}

#[test]
fn names_are_removed_as_what_they_are() {
    check("rm a", "ENOENT");
    check("rmdir a", "ENOENT");
    check("mkdir a; rm a", "EISDIR");
    check("touch a; rmdir a", "ENOTDIR");
    check("ln-s x a; rmdir a", "ENOTDIR");
    check("ln-s x a; rm a; lstat a", "ENOENT");
    check("mkdir a; touch a/b; rmdir a", "ENOTEMPTY");
    check("mkdir a; touch a/b; rm a/b; rmdir a; ls /", "ok");
    check("mkdir a; rmdir a; touch a/b", "ENOENT");
}

#[test]
fn a_directory_counts_its_subdirectories() {
    check("mkdir a; mkdir a/b; mkdir a/c; touch a/d; stat a", "d0755 4 0");
    check("mkdir a; mkdir a/b; rmdir a/b; stat a", "d0755 2 0");
    check("mkdir a; mkdir a/b; mkdir c; mv a/b c/b; stat a", "d0755 2 0");
    check("mkdir a; mkdir a/b; mkdir c; mv a/b c/b; stat c", "d0755 3 0");
    check("mkdir a; mkdir a/b; mkdir c; mkdir c/d; mv a/b c/d; stat c", "d0755 3 0");
    check("mkdir a; mkdir a/b; touch c; mv-x a/b c; stat a", "d0755 2 0");
}

#[test]
fn hard_links_are_one_file() {
    check("write a text; ln a b; cat b", "text");
    check("write a text; ln a b; stat b", "-0644 2 4");
    check("write a text; ln a b; rm a; stat b", "-0644 1 4");
    check("write a text; ln a b; write b TE; cat a", "TExt");
    check("write a 1; ln a b; rm a; write a 2; cat b", "1");
    check("mkdir a; ln a b", "EPERM");
    check("ln a b", "ENOENT");
    check("ln-s x a; ln a b; readlink b", "x");
    check("write a 1; ln a b; mv a b; ls /", "a b");
    check("write a 1; ln a b; mv a b; rm a; cat b", "1");
}

#[test]
fn a_rename_moves_and_replaces() {
    check("write a 1; mv a b; ls /", "b");
    check("write a 1; write b 22; mv a b; cat b", "1");
    check("write a 1; mv a a; cat a", "1");
    check("mkdir a; write a/f 1; mv a b; cat b/f", "1");
    check("mkdir a; mkdir a/b; write a/b/f 1; mkdir c; mv a/b c/d; cat c/d/f", "1");
    check("mkdir a; mkdir b; mv a b; ls /", "b");
    check("mkdir a; mkdir a/x; mv a b; mkdir a; mv b/x a/y; ls a", "y");
    check("ln-s x a; write b 1; mv a b; readlink b", "x");
}

#[test]
fn a_rename_that_cannot_be_is_refused_as_the_kernel_does() {
    check("mv a b", "ENOENT");
    check("touch a; mv a x/b", "ENOENT");
    check("mkdir a; touch b; mv a b", "ENOTDIR");
    check("mkdir a; touch b; mv b a", "EISDIR");
    check("mkdir a; mkdir b; touch b/c; mv a b", "ENOTEMPTY");
    check("mkdir a; mv a a/b", "EINVAL");
    check("mkdir a; mkdir a/b; mv a a/b/c", "EINVAL");
    check("mkdir a; mkdir a/b; mv a/b a", "ENOTEMPTY");
    check("mkdir a; touch a/b; mv a/b a", "ENOTEMPTY");
    check("touch a; touch b; mv-n a b", "EEXIST");
    check("touch a; mv-n a b; ls /", "b");
    check("touch a; mv-n a a", "EEXIST");
    check("touch a; touch b; mv a/x b", "ENOTDIR");
}

#[test]
fn an_exchange_swaps_whatever_two_names_lead_to() {
    check("write a 1; write b 2; mv-x a b; cat a", "2");
    check("write a 1; mkdir b; write b/c 2; mv-x a b; cat a/c", "2");
    check("write a 1; mkdir b; mv-x a b; cat b", "1");
    check("touch a; mv-x a b", "ENOENT");
    check("mkdir a; mkdir a/b; mv-x a a/b", "EINVAL");
    check("mkdir a; mkdir a/b; mv-x a/b a", "EINVAL");
    check("mkdir a; mkdir b; write a/f 1; mkdir b/c; mv-x a b/c; cat b/c/f", "1");
    check("write a 1; mv-x a a; cat a", "1");
}

#[test]
fn symbolic_links_lead_on() {
    check("ln-s b a; write b 1; cat a", "1");
    check("mkdir d; write d/f 1; ln-s d a; cat a/f", "1");
    check("mkdir d; write d/f 1; mkdir e; ln-s ../d/f e/a; cat e/a", "1");
    check("ln-s a a; cat a", "ELOOP");
    check("ln-s b a; ln-s a b; cat a/x", "ELOOP");
    check("ln-s x a; cat a", "ENOENT");
    check("ln-s x a; lstat a", "l0777 1 1");
    check("touch f; ln-s f a; ls a", "ENOTDIR");
    check("touch f; readlink f", "EINVAL");
    check("mkdir d; ln-s d a; lstat a/", "d0755 2 0");
    check("touch f; ln-s f a; lstat a/", "ENOTDIR");
    check("touch f; lstat f/", "ENOTDIR");
    check("touch f; lstat f/.", "ENOTDIR");
    check("mkdir d; touch f; lstat d/../f", "-0644 1 0");
    check("touch f; lstat f/..", "ENOTDIR");
    check("mkdir d; mkdir d/e; ln-s d/e l; touch d/f; lstat l/../f", "-0644 1 0");
}

#[test]
fn forty_links_are_followed_and_no_more() {
    let chain = |count: u32| {
        let links: Vec<String> = (0..count).map(|link| format!("ln-s {} {link}", link + 1)).collect();
        format!("write {count} end; {}; cat 0", links.join("; "))
    };
    check(&chain(40), "end");
    check(&chain(41), "ELOOP");
}

#[test]
fn a_name_that_is_too_long_is_refused() {
    check(&format!("touch {}", "x".repeat(255)), "ok");
    check(&format!("touch {}", "x".repeat(256)), "ENAMETOOLONG");
    check(&format!("lstat {}/y", "x".repeat(256)), "ENAMETOOLONG");
}

#[test]
fn content_and_size_follow_writes_and_cuts() {
    check("write a 0123456789; truncate a 4; cat a", "0123");
    check("write a 0123; truncate a 2; truncate a 4; cat a", "01\0\0");
    check("write a 01234567; write a ab; cat a", "ab234567");
    check("truncate a 4", "ENOENT");
    check("mkdir a; truncate a 4", "EISDIR");
    check("mkdir a; cat a", "EISDIR");
    check("write a 1; chmod a 4711; stat a", "-4711 1 1");
    check("mkdir a; chmod a 1777; stat a", "d1777 2 0");
}

#[test]
fn extended_attributes_are_made_changed_and_removed() {
    check("touch a; setx a user.x 1; getx a user.x", "1");
    check("touch a; setx a user.x 1; setx a user.x 22; getx a user.x", "22");
    check("touch a; getx a user.x", "ENODATA");
    check("touch a; setx-c a user.x 1; setx-c a user.x 1", "EEXIST");
    check("touch a; setx-r a user.x 1", "ENODATA");
    check("touch a; setx a user.x 1; rmx a user.x; rmx a user.x", "ENODATA");
    check("touch a; setx a nothing.x 1", "EOPNOTSUPP");
    check("mkdir a; setx a user.x 1; mv a b; getx b user.x", "1");
}
