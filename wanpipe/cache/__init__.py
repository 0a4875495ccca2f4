"""Operations on a whole cache: list, explain, verify, collect, export and import."""
