"""SERVES: tables written as other programs read them."""
