//! The texts of a call, as clients spell them.

use serde_json::Value;

use crate::failure::Failure;
use crate::whole::whole;

/// One text, or what stands for one.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Input {
    Text(String),
    /// A query and a text, or two texts to be classified as one.
    Pair(String, String),
    /// Token ids that the client made.
    Ids(Vec<u32>),
    /// A text or token ids, of whose tokens each is to have a vector.
    EachToken(Box<Self>),
}

impl Input {
    /// Bytes, or tokens: a measure of the work that tokenising it is.
    pub(crate) fn size(&self) -> usize {
        match self {
            Self::Text(text) => text.len(),
            Self::Pair(first, second) => first.len() + second.len(),
            Self::Ids(ids) => ids.len(),
            Self::EachToken(input) => input.size(),
        }
    }

    /// Characters, which TEI reports.
    pub(crate) fn characters(&self) -> usize {
        match self {
            Self::Text(text) => text.chars().count(),
            Self::Pair(first, second) => first.chars().count() + second.chars().count(),
            Self::Ids(_) => 0,
            Self::EachToken(input) => input.characters(),
        }
    }
}

/// The texts of a call and how they are named in errors.
#[derive(Debug)]
pub(crate) struct Inputs {
    pub(crate) items: Vec<Input>,
    /// Whether the client sent one text and not a list.
    pub(crate) single: bool,
    /// The field that they came in.
    pub(crate) field: &'static str,
    /// What is put before each text, if another prompt than the model's own is asked for.
    pub(crate) prompt: Option<String>,
}

/// What of a server's settings decides whether texts are taken.
#[derive(Clone, Copy, Debug)]
pub(crate) struct InputLimits {
    pub(crate) max_texts: usize,
    pub(crate) token_ids: bool,
}

impl Inputs {
    /// Reads a text, a list of texts, or, where they are taken, token ids.
    ///
    /// # Errors
    /// An empty text or list, too many texts, or anything else.
    pub(crate) fn read(
        value: Value,
        field: &'static str,
        limits: InputLimits,
    ) -> Result<Self, Failure> {
        let inputs = match value {
            Value::String(text) => {
                Self { items: vec![Input::Text(text)], single: true, field, prompt: None }
            }
            Value::Array(values) if values.first().is_some_and(Value::is_number) => {
                Self { items: vec![ids(values, field, limits)?], single: true, field, prompt: None }
            }
            Value::Array(values) => {
                // Before anything is made of them.
                count(values.len(), field, limits)?;
                let item = |(index, value)| match value {
                    Value::String(text) => Ok(Input::Text(text)),
                    Value::Array(values) => ids(values, &format!("{field}[{index}]"), limits),
                    _ => {
                        Err(Failure::malformed("must be a string").at(format!("{field}[{index}]")))
                    }
                };
                let items = values.into_iter().enumerate().map(item).collect::<Result<_, _>>()?;
                Self { items, single: false, field, prompt: None }
            }
            Value::Null => return Err(Failure::malformed("must be given").at(field)),
            _ => {
                let message = "must be a string or a list of strings";
                return Err(Failure::malformed(message).at(field));
            }
        };
        inputs.checked(limits)
    }

    /// Of texts that are known to be texts.
    ///
    /// # Errors
    /// An empty text or list, or too many.
    pub(crate) fn texts(
        texts: Vec<String>,
        field: &'static str,
        limits: InputLimits,
    ) -> Result<Self, Failure> {
        let items = texts.into_iter().map(Input::Text).collect();
        Self { items, single: false, field, prompt: None }.checked(limits)
    }

    /// Of a query and the texts to be scored.
    ///
    /// # Errors
    /// An empty query, text or list, or too many texts.
    pub(crate) fn pairs(
        query: &str,
        texts: Vec<String>,
        field: &'static str,
        limits: InputLimits,
    ) -> Result<Self, Failure> {
        if query.is_empty() {
            return Err(Failure::malformed("must not be empty").at("query"));
        }
        let pair = |text| Input::Pair(query.to_owned(), text);
        count(texts.len(), field, limits)?;
        let items = texts.into_iter().map(pair).collect();
        Self { items, single: false, field, prompt: None }.checked(limits)
    }

    /// One or more texts or pairs, each checked.
    ///
    /// # Errors
    /// As [`read`](Self::read).
    pub(crate) fn checked(self, limits: InputLimits) -> Result<Self, Failure> {
        count(self.items.len(), self.field, limits)?;
        for (index, item) in self.items.iter().enumerate() {
            let empty = match item {
                Input::Text(text) => text.is_empty(),
                Input::Pair(_, second) => second.is_empty(),
                Input::Ids(ids) => ids.is_empty(),
                Input::EachToken(input) => input.size() == 0,
            };
            if empty {
                return Err(Failure::malformed("must not be empty").at(self.name(index)));
            }
        }
        Ok(self)
    }

    /// Puts the prompt that was asked for, or else the model's own, before each text.
    pub(crate) fn prompted(mut self, default: Option<&str>) -> Self {
        if let Some(prompt) = self.prompt.take().or_else(|| default.map(str::to_owned)) {
            for item in &mut self.items {
                let item = match item {
                    Input::EachToken(item) => item,
                    item => item,
                };
                if let Input::Text(text) = item {
                    text.insert_str(0, &prompt);
                }
            }
        }
        self
    }

    /// Asks for a vector of each token instead of one of each text.
    pub(crate) fn of_each_token(mut self) -> Self {
        let each = |input| Input::EachToken(Box::new(input));
        self.items = self.items.into_iter().map(each).collect();
        self
    }

    /// How errors name a text.
    pub(crate) fn name(&self, index: usize) -> String {
        name(self.field, index)
    }
}

/// How errors name the text of this number.
pub(crate) fn name(field: &str, index: usize) -> String {
    format!("{field}[{index}]")
}

fn count(texts: usize, field: &str, limits: InputLimits) -> Result<(), Failure> {
    if texts == 0 {
        return Err(Failure::malformed("must not be empty").at(field));
    }
    if texts > limits.max_texts {
        let message = format!("{texts} texts are more than the {} of a call", limits.max_texts);
        return Err(Failure::malformed(message).at(field));
    }
    Ok(())
}

fn ids(values: Vec<Value>, part: &str, limits: InputLimits) -> Result<Input, Failure> {
    let number = |value: Value| u32::try_from(whole(value.as_number()?)?).ok();
    let ids: Option<Vec<u32>> = values.into_iter().map(number).collect();
    let ids = ids.ok_or_else(|| Failure::malformed("must be a string or token ids").at(part))?;
    if !limits.token_ids {
        let message = "token ids are not taken, since they are of another model's tokeniser: send \
                       texts (LangChain's OpenAIEmbeddings does with \
                       check_embedding_ctx_length=False), or start the server with --token-ids";
        return Err(Failure::malformed(message).at(part));
    }
    Ok(Input::Ids(ids))
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn read(value: Value, token_ids: bool) -> Result<Vec<Input>, String> {
        let limits = InputLimits { max_texts: 3, token_ids };
        Inputs::read(value, "input", limits).map(|i| i.items).map_err(|failure| failure.message)
    }

    #[test]
    fn a_prompt_goes_before_texts_that_ask_for_each_token_too() {
        let limits = InputLimits { max_texts: 3, token_ids: false };
        let inputs = Inputs::read(json!(["a"]), "inputs", limits).unwrap().of_each_token();
        let text = Input::Text("query: a".to_owned());
        assert_eq!(inputs.prompted(Some("query: ")).items, [Input::EachToken(Box::new(text))]);
    }

    #[test]
    fn texts_are_read_and_what_is_wrong_is_named() {
        assert_eq!(read(json!("a"), false).unwrap(), [Input::Text("a".to_owned())]);
        assert_eq!(read(json!(["a", "b"]), false).unwrap().len(), 2);
        for (value, part) in [
            (json!(""), "input[0]: must not be empty"),
            (json!(["a", ""]), "input[1]: must not be empty"),
            (json!([]), "input: must not be empty"),
            (json!(["a", 7]), "input[1]: must be a string"),
            (json!(["a", [1, "x"]]), "input[1]: must be a string or token ids"),
            (json!({"a": 1}), "input: must be a string or a list"),
            (Value::Null, "input: must be given"),
            (json!(["a", "b", "c", "d"]), "input: 4 texts are more than the 3"),
            (json!([1, 2]), "input: token ids are not taken"),
            (json!([[1, 2], [3]]), "input[0]: token ids are not taken"),
        ] {
            let message = read(value, false).unwrap_err();
            assert!(message.starts_with(part), "{message}");
        }
        assert!(read(json!([1, 2]), false).unwrap_err().contains("check_embedding_ctx_length"));
        assert_eq!(read(json!([1, 2]), true).unwrap(), [Input::Ids(vec![1, 2])]);
        assert!(read(json!([-1, 2]), true).is_err());
    }
}
