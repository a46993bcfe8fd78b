// Defined in cuda_words.h.
