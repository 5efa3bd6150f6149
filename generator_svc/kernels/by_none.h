/* See by_8.h. */
#undef NAME
#undef Vector
#undef Unaligned
#undef EXP
#undef HIGHER
#undef HIGHEST
#undef UNLIKE
#undef TOTAL
