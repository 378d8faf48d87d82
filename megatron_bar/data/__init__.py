"""From text and chats to batches of token ids; never imports models."""
