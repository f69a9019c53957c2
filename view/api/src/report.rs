//! Reports: what `veduta info` prints, for people and as JSON, without a driver knowing about either.

/// Facts about an object, in the order in which they are to be read.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Report {
    fields: Vec<(&'static str, Value)>,
}

/// One fact. How it is printed follows from its kind.
#[derive(Clone, Debug, PartialEq)]
pub enum Value {
    /// A word or a sentence.
    Text(String),
    /// A count of something.
    Number(u64),
    /// A count of bytes: people see `1.5 GiB`, JSON the number.
    Bytes(u64),
    /// Yes or no.
    Flag(bool),
    /// A moment; people see it in UTC.
    Time(crate::Timestamp),
    /// Words, such as names of features.
    List(Vec<String>),
    /// Facts within a fact.
    Nested(Report),
    /// Several of a kind, such as partitions.
    Table(Vec<Report>),
}

impl Report {
    /// An empty report.
    pub fn new() -> Self {
        Self::default()
    }

    /// Adds a fact. Keys are lower case, words joined by `_`, so that they serve as JSON keys too.
    pub fn put(&mut self, key: &'static str, value: impl Into<Value>) -> &mut Self {
        self.fields.push((key, value.into()));
        self
    }

    /// Adds a fact about the health of the object: something that a person should look at. Collected under
    /// the key `warnings`.
    pub fn warn(&mut self, sentence: impl Into<String>) -> &mut Self {
        let sentence = sentence.into();
        for (key, value) in &mut self.fields {
            if let ("warnings", Value::List(list)) = (*key, value) {
                list.push(sentence);
                return self;
            }
        }
        self.put("warnings", vec![sentence])
    }

    /// All facts, in order.
    pub fn fields(&self) -> &[(&'static str, Value)] {
        &self.fields
    }

    /// The first fact called `key`.
    pub fn find(&self, key: &str) -> Option<&Value> {
        self.fields.iter().find(|(name, _)| *name == key).map(|(_, value)| value)
    }
}

impl From<&str> for Value {
    fn from(text: &str) -> Self {
        Value::Text(text.to_owned())
    }
}
impl From<String> for Value {
    fn from(text: String) -> Self {
        Value::Text(text)
    }
}
impl From<u64> for Value {
    fn from(number: u64) -> Self {
        Value::Number(number)
    }
}
impl From<u32> for Value {
    fn from(number: u32) -> Self {
        Value::Number(number.into())
    }
}
impl From<bool> for Value {
    fn from(flag: bool) -> Self {
        Value::Flag(flag)
    }
}
impl From<crate::Timestamp> for Value {
    fn from(time: crate::Timestamp) -> Self {
        Value::Time(time)
    }
}
impl From<Vec<String>> for Value {
    fn from(list: Vec<String>) -> Self {
        Value::List(list)
    }
}
impl From<Report> for Value {
    fn from(report: Report) -> Self {
        Value::Nested(report)
    }
}
impl From<Vec<Report>> for Value {
    fn from(reports: Vec<Report>) -> Self {
        Value::Table(reports)
    }
}
