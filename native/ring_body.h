/* The arithmetic of ring.c for one type of word; included once for each. It undefines what it is given:
 *
 *   NAME(x) WORD LANES            names; the word, and how many a vector of 64 bytes holds
 *   WIDE_16(p) WIDE_32(p)         LANES weights at p, of 16 or 32 bits, with their signs, as words
 *   SPREAD(x)                     a word in all lanes
 *   MOST_POSITIONS WIDTHS(X)      positions in a panel whose sums stay in registers; panels are as wide as one of WIDTHS
 */

typedef WORD NAME(Vector) __attribute__((vector_size(64)));
#define VECTOR NAME(Vector)
#define VECTORS (OUTPUTS / LANES)
#define FEW_VECTORS 4

/* The input in this arithmetic's words, as large as it is read; 0 wherever that is outside. */
static void NAME(pad)(const Job *job, const uint64_t *x) {
    const Shape *s = &job->s;
    const ptrdiff_t height = (ptrdiff_t)s->height, width = (ptrdiff_t)s->width;
    const ptrdiff_t down = (ptrdiff_t)job->padded_height, right = (ptrdiff_t)job->padded_width;
    ptrdiff_t first, last;
    inside(job, &first, &last);
    WORD *to = job->padded;
    for (size_t plane = 0; plane < s->images * s->channels; plane++) {
        for (ptrdiff_t i = 0; i < down; i++, to += right) {
            const ptrdiff_t row = i - s->top;
            if (row < 0 || row >= height) {
                memset(to, 0, (size_t)right * sizeof *to);
                continue;
            }
            const uint64_t *from = x + ((ptrdiff_t)plane * height + row) * width;
            for (ptrdiff_t j = 0; j < first; j++) {
                to[j] = 0;
            }
            for (ptrdiff_t j = first; j < last; j++) {
                to[j] = (WORD)from[j - s->left];
            }
            for (ptrdiff_t j = last; j < right; j++) {
                to[j] = 0;
            }
        }
    }
}

/* panel[tap, p] = the input under that tap at position p, for `count` positions of a panel of `width`; the others are 0. */
static void NAME(fill)(const Job *job, const WORD *padded, const size_t *from, size_t count, size_t width, WORD *panel) {
    size_t starts[LANES * FEW_VECTORS + 1], runs = 0;
    for (size_t p = 0; p < count; p++) {
        if (p == 0 || from[p] != from[p - 1] + 1) {
            starts[runs++] = p;
        }
    }
    starts[runs] = count;
    for (size_t tap = 0; tap < job->taps; tap++, panel += width) {
        const WORD *at = padded + job->offsets[tap];
        if (runs == count) {
            for (size_t p = 0; p < count; p++) {
                panel[p] = at[from[p]];
            }
        } else {
            for (size_t r = 0; r < runs; r++) {
                const WORD *run = at + from[starts[r]] - starts[r];
                for (size_t p = starts[r]; p < starts[r + 1]; p++) {
                    panel[p] = run[p];
                }
            }
        }
        for (size_t p = count; p < width; p++) {
            panel[p] = 0;
        }
    }
}

/* sums[p, o] = sum over the taps of weights[tap, o] panel[tap, p], for one block of outputs. */
#define MULTIPLY(WIDTH, BITS)                                                                                                  \
    AVX512 static void NAME(multiply_##WIDTH##_##BITS)(const PASTE(PASTE(int, BITS), _t) * weights, const WORD *panel, \
                                                               size_t taps, WORD *sums) {                                      \
        VECTOR total[WIDTH][VECTORS];                                                                                          \
        memset(total, 0, sizeof total);                                                                                        \
        for (size_t tap = 0; tap < taps; tap++, weights += OUTPUTS, panel += WIDTH) {                                          \
            VECTOR w[VECTORS];                                                                                                 \
            _Pragma("GCC unroll 2") for (int v = 0; v < VECTORS; v++) { w[v] = WIDE_##BITS(weights + v * LANES); }             \
            _Pragma("GCC unroll 24") for (int p = 0; p < WIDTH; p++) {                                                         \
                const VECTOR x = SPREAD(panel[p]);                                                                             \
                _Pragma("GCC unroll 2") for (int v = 0; v < VECTORS; v++) { total[p][v] += w[v] * x; }                         \
            }                                                                                                                  \
        }                                                                                                                      \
        memcpy(sums, total, sizeof total);                                                                                     \
    }
#define BOTH(WIDTH) MULTIPLY(WIDTH, 16) MULTIPLY(WIDTH, 32)
WIDTHS(BOTH)
#undef BOTH
#undef MULTIPLY

static void NAME(multiply)(size_t width, size_t weight_bytes, const void *weights, const WORD *panel, size_t taps, WORD *sums) {
    switch (width) {
#define CASE(WIDTH)                                                             \
    case WIDTH:                                                                 \
        if (weight_bytes == 2) {                                                \
            NAME(multiply_##WIDTH##_16)(weights, panel, taps, sums);            \
        } else {                                                                \
            NAME(multiply_##WIDTH##_32)(weights, panel, taps, sums);            \
        }                                                                       \
        break;
        WIDTHS(CASE)
#undef CASE
    }
}

/* The narrowest panel for so many positions. */
static size_t NAME(width_of)(size_t count) {
#define TRY(WIDTH)         \
    if (count <= WIDTH) {  \
        return WIDTH;      \
    }
    WIDTHS(TRY)
#undef TRY
    return MOST_POSITIONS;
}

/* sums[p] = sum over the taps of weights[tap] panel[tap, p], for one output channel and FEW_VECTORS vectors of positions. */
#define MULTIPLY(BITS)                                                                                                         \
    AVX512 static void NAME(multiply_few_##BITS)(const PASTE(PASTE(int, BITS), _t) * weights, const WORD *panel, size_t taps,  \
                                                 WORD *sums) {                                                                 \
        VECTOR total[FEW_VECTORS];                                                                                             \
        memset(total, 0, sizeof total);                                                                                        \
        for (size_t tap = 0; tap < taps; tap++, panel += LANES * FEW_VECTORS) {                                                \
            const VECTOR w = SPREAD((WORD)weights[tap]);                                                                       \
            _Pragma("GCC unroll 4") for (int v = 0; v < FEW_VECTORS; v++) {                                                    \
                VECTOR x;                                                                                                      \
                memcpy(&x, panel + v * LANES, sizeof x);                                                                       \
                total[v] += w * x;                                                                                             \
            }                                                                                                                  \
        }                                                                                                                      \
        memcpy(sums, total, sizeof total);                                                                                     \
    }
MULTIPLY(16)
MULTIPLY(32)
#undef MULTIPLY

/* Write the sums of one output channel, `stride` apart, to their places. */
static void NAME(put)(const WORD *sums, size_t stride, uint64_t *out, const size_t *to, size_t count, uint64_t mask) {
    for (size_t p = 0; p < count; p++) {
        out[to[p]] = sums[p * stride] & mask;
    }
}

/* Part `part` of `parts` of the work. Return 0, or -1 where memory is short. */
static int NAME(work)(const Job *job, size_t part, size_t parts) {
    const Shape *s = &job->s;
    const int few = job->one_by_one;
    const size_t most = few ? LANES * FEW_VECTORS : MOST_POSITIONS;
    const size_t panels = (job->positions + most - 1) / most;
    const size_t width = few ? most : NAME(width_of)((job->positions + panels - 1) / panels);
    const size_t pieces = (job->positions + width - 1) / width, columns = few ? job->group_outputs : job->blocks;
    const size_t map = s->rows * s->columns, inputs = job->group_inputs * job->padded_height * job->padded_width;
    const uint64_t mask = s->bits >= 64 ? UINT64_MAX : ((uint64_t)1 << s->bits) - 1;
    const Share share = share_of(s->groups * pieces, columns, part, parts);
    if (share.piece == share.last_piece || share.block == share.last_block) {
        return 0;
    }
    WORD *panel = aligned_alloc(64, (job->taps * width * sizeof *panel + 63) / 64 * 64);
    if (panel == NULL) {
        return -1;
    }
    WORD sums[OUTPUTS * MOST_POSITIONS > LANES * FEW_VECTORS ? OUTPUTS * MOST_POSITIONS : LANES * FEW_VECTORS];
    size_t from[LANES * FEW_VECTORS], to[LANES * FEW_VECTORS];
    for (size_t piece = share.piece; piece < share.last_piece; piece++) {
        const size_t group = piece / pieces, first = piece % pieces * width;
        const size_t count = job->positions - first < width ? job->positions - first : width;
        const size_t own = few ? width : NAME(width_of)(count);
        places(job, first, count, from, to);
        NAME(fill)(job, (const WORD *)job->padded + group * inputs, from, count, own, panel);
        for (size_t b = share.block; b < share.last_block; b++) {
            if (few) {
                const size_t output = group * job->group_outputs + b;
                const char *weights = (const char *)job->weights + output * job->taps * s->weight_bytes;
                if (s->weight_bytes == 2) {
                    NAME(multiply_few_16)((const int16_t *)(const void *)weights, panel, job->taps, sums);
                } else {
                    NAME(multiply_few_32)((const int32_t *)(const void *)weights, panel, job->taps, sums);
                }
                NAME(put)(sums, 1, job->out + output * map, to, count, mask);
                continue;
            }
            const char *weights = (const char *)job->weights + (group * columns + b) * job->taps * OUTPUTS * s->weight_bytes;
            NAME(multiply)(own, s->weight_bytes, weights, panel, job->taps, sums);
            const size_t output = b * OUTPUTS;
            const size_t outputs = job->group_outputs - output < OUTPUTS ? job->group_outputs - output : OUTPUTS;
            for (size_t o = 0; o < outputs; o++) {
                NAME(put)(sums + o, OUTPUTS, job->out + (group * job->group_outputs + output + o) * map, to, count, mask);
            }
        }
    }
    free(panel);
    return 0;
}

#undef VECTOR
#undef VECTORS
#undef FEW_VECTORS
#undef NAME
#undef WORD
#undef LANES
#undef WIDE_16
#undef WIDE_32
#undef SPREAD
#undef MOST_POSITIONS
#undef WIDTHS
