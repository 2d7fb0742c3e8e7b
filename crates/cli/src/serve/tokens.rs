//! What the server asks of a tokeniser of candle's models.

use onelane_engines::{TextToken, TokenisedText, Tokeniser};
use onelane_server::{TextError, Token, Tokenised};

/// The tokens of a text.
pub fn tokens(tokeniser: &Tokeniser, text: &str, special: bool) -> Result<Vec<Token>, TextError> {
    let token = |token: TextToken| Token {
        id: token.id,
        text: token.text,
        special: token.special,
        start: token.span.map(|(start, _)| start),
        stop: token.span.map(|(_, stop)| stop),
    };
    let tokens = tokeniser.tokens(text, special).map_err(text_error)?;
    Ok(tokens.into_iter().map(token).collect())
}

/// The text of token ids.
pub fn decode(tokeniser: &Tokeniser, ids: &[u32], skip: bool) -> Result<String, TextError> {
    tokeniser.decode(ids, skip).map_err(text_error)
}

/// A text with its weight.
pub fn weighed(text: TokenisedText) -> Tokenised<TokenisedText> {
    Tokenised { tokens: text.ids().len(), truncated: text.truncated(), item: text }
}

/// Why a text has no tokens.
pub fn text_error(error: impl std::fmt::Display) -> TextError {
    TextError(error.to_string())
}
