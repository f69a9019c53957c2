//! The two forms in which a volume records moments.
//!
//! Short (ECMA-119 9.1.5), 7 bytes: years since 1900, month, day, hour, minute, second, zone. Long (8.4.26.1),
//! 17 bytes: the same as digits `YYYYMMDDHHMMSSCC` with hundredths of a second, then the zone. The zone is a signed
//! count of quarters of an hour east of Greenwich; the digits are local time there.

use veduta_api::Timestamp;

/// A short form; `None` if it names no moment (all zeros, or a month 13).
pub(crate) fn short(bytes: &[u8]) -> Option<Timestamp> {
    let [year, month, day, hour, minute, second, zone] = *bytes.first_chunk::<7>()?;
    let clock = [hour, minute, second].map(i64::from);
    let seconds = seconds(1900 + i64::from(year), month.into(), day.into(), clock)?;
    Some(Timestamp::from_seconds(seconds - offset(zone)))
}

/// A long form; `None` if it names no moment (all digits zero).
pub(crate) fn long(bytes: &[u8]) -> Option<Timestamp> {
    let bytes = bytes.first_chunk::<17>()?;
    let year = number(&bytes[0..4])?;
    let clock = [number(&bytes[8..10])?, number(&bytes[10..12])?, number(&bytes[12..14])?];
    let seconds = seconds(year, number(&bytes[4..6])?, number(&bytes[6..8])?, clock)?;
    let nanos = number(&bytes[14..16])? as u32 * 10_000_000;
    Some(Timestamp { seconds: seconds - offset(bytes[16]), nanos })
}

fn number(digits: &[u8]) -> Option<i64> {
    digits.iter().try_fold(0, |sum, digit| digit.is_ascii_digit().then(|| sum * 10 + i64::from(digit - b'0')))
}

/// Seconds east of Greenwich. The standard allows 12 hours west to 13 east. genisoimage writes a zone that is a day
/// off (such as -18:15 for +05:45) with moments more than a year or so ahead of its own time, so that one beyond is
/// taken back by a day. (xorriso believes it, and restores such files a day late; Linux takes it for +00:00.)
fn offset(zone: u8) -> i64 {
    let quarters = i64::from(zone as i8);
    let quarters = match quarters {
        ..-52 => quarters + 96,
        53.. => quarters - 96,
        _ => quarters,
    };
    quarters * 900
}

/// Seconds since 1970 of a moment of the Gregorian calendar, `year` from 0 to 9999.
fn seconds(year: i64, month: i64, day: i64, [hour, minute, second]: [i64; 3]) -> Option<i64> {
    const BEFORE_MONTH: [i64; 12] = [0, 31, 59, 90, 120, 151, 181, 212, 243, 273, 304, 334];
    let in_range = (1..=31).contains(&day) && hour < 24 && minute < 60 && second < 61;
    let before_month = *BEFORE_MONTH.get(usize::try_from(month - 1).ok()?)?;
    let leaps_through = |year: i64| year.div_euclid(4) - year.div_euclid(100) + year.div_euclid(400);
    let is_leap = leaps_through(year) > leaps_through(year - 1);
    let days = (year - 1970) * 365 + leaps_through(year - 1) - leaps_through(1969)
        + before_month
        + i64::from(is_leap && month > 2)
        + day
        - 1;
    in_range.then_some(days * 86_400 + hour * 3600 + minute * 60 + second)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_forms_name_the_same_moment() {
        // 2024-02-29 23:59:58 at UTC+02:00.
        let moment = Timestamp::from_seconds(1_709_243_998);
        assert_eq!(short(&[124, 2, 29, 23, 59, 58, 8]), Some(moment));
        assert_eq!(long(b"2024022923595825\x08"), Some(Timestamp { nanos: 250_000_000, ..moment }));
    }

    #[test]
    fn moments_before_1970_and_far_years_are_right() {
        assert_eq!(short(&[0, 1, 1, 0, 0, 0, 0]), Some(Timestamp::from_seconds(-2_208_988_800)));
        assert_eq!(short(&[200, 3, 1, 0, 0, 0, 0]), Some(Timestamp::from_seconds(4_107_542_400)));
        assert_eq!(short(&[70, 1, 1, 0, 0, 0, 0xfc]), Some(Timestamp::from_seconds(3600)));
    }

    #[test]
    fn a_zone_that_is_a_day_off_is_taken_back() {
        let noon = |zone: i8| short(&[138, 1, 19, 12, 0, 0, zone as u8]).unwrap().seconds;
        assert_eq!(noon(-96), noon(0));
        assert_eq!(noon(-73), noon(23));
        assert_eq!(noon(96), noon(0));
        assert_eq!(noon(52), noon(0) - 13 * 3600);
    }

    #[test]
    fn what_names_no_moment_is_none() {
        assert_eq!(short(&[0; 7]), None);
        assert_eq!(short(&[99, 13, 1, 0, 0, 0, 0]), None);
        assert_eq!(short(&[99, 1]), None);
        assert_eq!(long(b"0000000000000000\0"), None);
        assert_eq!(long(b"2024-02-29 23:59\0"), None);
    }
}
