//! Moments as FAT and exFAT store them: local time since 1980, in fields of bits.
//!
//! A date has 7 bits for the year since 1980, 4 for the month and 5 for the day; a time 5 for the hour, 6 for the minute
//! and 5 for every second second. A third byte, where there is one, adds up to 199 hundredths. exFAT adds the
//! distance from UTC in quarters of an hour.

use veduta_api::Timestamp;

/// A moment in fields.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Stamp {
    pub(crate) date: u16,
    pub(crate) time: u16,
    /// Hundredths of a second, 0 to 199.
    pub(crate) fine: u8,
}

impl Stamp {
    /// The fields of a moment, `minutes` east of UTC; the years from 1980 to 2107 are all there is.
    pub(crate) fn of(moment: Timestamp, minutes: i32) -> Self {
        let local = moment.seconds.saturating_add(i64::from(minutes) * 60);
        let (days, second) = (local.div_euclid(86_400), local.rem_euclid(86_400));
        let (year, month, day) = civil(days);
        if year < 1980 {
            return Self { date: 0x21, time: 0, fine: 0 };
        }
        if year > 2107 {
            return Self { date: 0xff9f, time: 0xbf7d, fine: 199 };
        }
        Self {
            date: ((year - 1980) << 9 | (month << 5) | day) as u16,
            time: ((second / 3600) << 11 | (second / 60 % 60) << 5 | (second % 60 / 2)) as u16,
            fine: (second % 2 * 100) as u8 + (moment.nanos / 10_000_000).min(99) as u8,
        }
    }

    /// The moment that the fields mean. Fields that mean none (a month 0, an hour 25) are brought into their range.
    pub(crate) fn moment(self, minutes: i32) -> Timestamp {
        let field = |from: u16, shift: u16, bits: u16| i64::from(from >> shift & ((1 << bits) - 1));
        let (year, month, day) =
            (1980 + field(self.date, 9, 7), field(self.date, 5, 4), field(self.date, 0, 5));
        let (hour, minute, half) = (field(self.time, 11, 5), field(self.time, 5, 6), field(self.time, 0, 5));
        let days = days(year, month.clamp(1, 12), day.max(1));
        let fine = i64::from(self.fine.min(199));
        let second = hour.min(23) * 3600 + minute.min(59) * 60 + half.min(29) * 2 + fine / 100;
        Timestamp {
            seconds: days * 86_400 + second - i64::from(minutes) * 60,
            nanos: (fine % 100) as u32 * 10_000_000,
        }
    }
}

/// The distance from UTC that exFAT stores, in minutes; `None` if the byte says that it is not known.
pub(crate) fn offset_of_byte(byte: u8) -> Option<i32> {
    let quarters = i32::from((byte << 1) as i8 >> 1);
    (byte & 0x80 != 0).then_some(quarters * 15)
}

/// The byte for a distance of `minutes`, cut to whole quarters of an hour.
pub(crate) fn byte_of_offset(minutes: i32) -> u8 {
    0x80 | ((minutes / 15).clamp(-64, 63) as u8 & 0x7f)
}

/// Days since 1970 of a date of the Gregorian calendar. Years are counted from March, so that the leap day is the last.
fn days(year: i64, month: i64, day: i64) -> i64 {
    let year = if month <= 2 { year - 1 } else { year };
    let (era, of_era) = (year.div_euclid(400), year.rem_euclid(400));
    let of_year = (153 * ((month + 9) % 12) + 2) / 5 + day - 1;
    era * 146_097 + of_era * 365 + of_era / 4 - of_era / 100 + of_year - 719_468
}

/// The inverse of [`days`]: year, month, day.
fn civil(days: i64) -> (i64, i64, i64) {
    let days = days + 719_468;
    let (era, of_era) = (days.div_euclid(146_097), days.rem_euclid(146_097));
    let year = (of_era - of_era / 1460 + of_era / 36_524 - of_era / 146_096) / 365;
    let of_year = of_era - (365 * year + year / 4 - year / 100);
    let shifted = (5 * of_year + 2) / 153;
    let month = if shifted < 10 { shifted + 3 } else { shifted - 9 };
    (year + era * 400 + i64::from(month <= 2), month, of_year - (153 * shifted + 2) / 5 + 1)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_moment_survives_to_its_granularity() {
        for seconds in [315_532_800, 951_782_400, 951_868_799, 1_700_000_001, 4_354_819_199] {
            let moment = Timestamp { seconds, nanos: 550_000_000 };
            for minutes in [0, 330, -720] {
                if !(315_619_200..=4_354_700_000).contains(&seconds) {
                    continue;
                }
                assert_eq!(Stamp::of(moment, minutes).moment(minutes), moment, "{seconds} {minutes}");
            }
        }
    }

    #[test]
    fn moments_outside_the_calendar_become_its_ends() {
        assert_eq!(Stamp::of(Timestamp::from_seconds(0), 0).moment(0).seconds, 315_532_800);
        assert_eq!(Stamp::of(Timestamp::from_seconds(i64::MAX), 0).moment(0).seconds, 4_354_819_199);
        assert_eq!(Stamp { date: 0, time: 0xffff, fine: 255 }.moment(0).seconds, 315_532_800 + 86_399);
    }

    #[test]
    fn an_offset_from_utc_survives() {
        for minutes in [0, 60, -60, 330, -720, 840] {
            assert_eq!(offset_of_byte(byte_of_offset(minutes)), Some(minutes));
        }
        assert_eq!(offset_of_byte(0x10), None);
    }
}
