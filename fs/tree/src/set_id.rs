//! What a write, or a change of owner, leaves of the set-id bits.

use veduta_api::Perm;

/// Without set-user-id, and without set-group-id where the group may execute (otherwise it means mandatory locks).
pub(crate) fn without_set_id(perm: Perm) -> Perm {
    let group = if perm.bits() & 0o010 != 0 { 0o2000 } else { 0 };
    Perm::from_mode(perm.bits() & !(0o4000 | group))
}
