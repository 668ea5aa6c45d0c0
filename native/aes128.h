/* AES-128 with the processor's own instructions, and what is done with blocks around it: AES-NI on x86-64, the cryptographic
 * extension of ARMv8 on AArch64. Key expansion, ECB encryption of many blocks in flight, and the linear map that hashes from a
 * block cipher need.
 *
 * Header only, no dependency, no table look-up: nothing here branches on or indexes by a secret.
 * Every function that needs AES carries DR_TARGET_AES, so the file compiles without -maes or -march; a caller must itself
 * carry DR_TARGET_AES and must have asked dr_has_aes() once before.
 *
 * Block order: byte 0 of a block in memory is byte 0 of FIPS-197's input; the "lowest bit" of a block is bit 0 of byte 0; its
 * low half are bytes 0 to 7, a little-endian number.
 */
#ifndef DEEPREDUCE_AES128_H
#define DEEPREDUCE_AES128_H

#include <stddef.h>
#include <stdint.h>
#include <string.h>

/* Clang on Linux has the intrinsics of AArch64 only where it may use them everywhere; on macOS that is so. */
#if defined(__ARM_FEATURE_AES) || defined(__ARM_FEATURE_CRYPTO)
#define DR_ARM_AES 1
#else
#define DR_ARM_AES 0
#endif

#define DR_X86 0
#define DR_ARM 0
#if defined(__x86_64__) && (defined(__GNUC__) || defined(__clang__))
#undef DR_X86
#define DR_X86 1
#elif defined(__aarch64__) && defined(__LP64__) && !defined(__AARCH64EB__) && \
    (defined(__clang__) ? DR_ARM_AES : defined(__GNUC__))
#undef DR_ARM
#define DR_ARM 1
#endif
#define DR_BLOCKS (DR_X86 || DR_ARM)

#if DR_X86
#include <cpuid.h>
#include <immintrin.h>

#define DR_TARGET_AES __attribute__((target("aes,ssse3,sse4.1")))

typedef __m128i dr_block;

/* Does this processor have AES-NI, SSSE3 and SSE4.1? Ask once and keep the answer: CPUID traps under a hypervisor. */
static inline int dr_has_aes(void) {
    unsigned a, b, c, d;
    if (!__get_cpuid(1, &a, &b, &c, &d)) {
        return 0;
    }
    return ((c >> 25) & 1) && ((c >> 9) & 1) && ((c >> 19) & 1);
}

DR_TARGET_AES static inline dr_block dr_load(const void *p) { return _mm_loadu_si128((const __m128i *)p); }
DR_TARGET_AES static inline void dr_store(void *p, dr_block v) { _mm_storeu_si128((__m128i *)p, v); }
DR_TARGET_AES static inline dr_block dr_zero(void) { return _mm_setzero_si128(); }
DR_TARGET_AES static inline dr_block dr_xor(dr_block a, dr_block b) { return _mm_xor_si128(a, b); }
DR_TARGET_AES static inline dr_block dr_and(dr_block a, dr_block b) { return _mm_and_si128(a, b); }
/* On the two halves as 64-bit numbers. */
DR_TARGET_AES static inline dr_block dr_halves(uint64_t low, uint64_t high) { return _mm_set_epi64x((long long)high, (long long)low); }
DR_TARGET_AES static inline dr_block dr_add(dr_block a, dr_block b) { return _mm_add_epi64(a, b); }
DR_TARGET_AES static inline dr_block dr_subtract(dr_block a, dr_block b) { return _mm_sub_epi64(a, b); }
DR_TARGET_AES static inline dr_block dr_up(dr_block v, int bits) { return _mm_slli_epi64(v, bits); }
DR_TARGET_AES static inline dr_block dr_down(dr_block v, int bits) { return _mm_srli_epi64(v, bits); }
/* Bytes of a and b in turn, from their low halves or their high ones. */
DR_TARGET_AES static inline dr_block dr_interleave_low(dr_block a, dr_block b) { return _mm_unpacklo_epi8(a, b); }
DR_TARGET_AES static inline dr_block dr_interleave_high(dr_block a, dr_block b) { return _mm_unpackhi_epi8(a, b); }
/* All ones where the lowest bit is 1, else zero. */
DR_TARGET_AES static inline dr_block dr_lowest(dr_block v) {
    return _mm_shuffle_epi32(_mm_srai_epi32(_mm_slli_epi32(v, 31), 31), 0);
}
/* sigma(high || low) = (high xor low) || high, a linear orthomorphism: x -> sigma(x) and x -> sigma(x) xor x are both
 * bijections, and sigma(sigma(x)) = sigma(x) xor x (Guo, Katz, Wang, Yu, IEEE S&P 2020, section 7.3). */
DR_TARGET_AES static inline dr_block dr_sigma(dr_block x) {
    return _mm_xor_si128(_mm_shuffle_epi32(x, 0x4e), _mm_and_si128(x, _mm_set_epi64x(-1, 0)));
}
/* FIPS-197 section 5.1: x = dr_first(x, key[0]); x = dr_round(x, key[DR_KEY(r)]) for r = 1 ... 9; dr_last(x, key[9], key[10]).
 * Round r adds key r behind the rest on x86-64. */
#define DR_KEY(r) (r)
DR_TARGET_AES static inline dr_block dr_first(dr_block x, dr_block key0) { return _mm_xor_si128(x, key0); }
DR_TARGET_AES static inline dr_block dr_round(dr_block x, dr_block key) { return _mm_aesenc_si128(x, key); }
DR_TARGET_AES static inline dr_block dr_last(dr_block x, dr_block key9, dr_block key10) {
    (void)key9;
    return _mm_aesenclast_si128(x, key10);
}
#endif /* DR_X86 */

#if DR_ARM
#include <arm_neon.h>
#if defined(__linux__)
#include <sys/auxv.h>
#endif

#if DR_ARM_AES
#define DR_TARGET_AES
#else
#define DR_TARGET_AES __attribute__((target("+crypto")))
#endif

typedef uint8x16_t dr_block;

/* Does this processor have the instructions AESE and AESMC? Where the compiler may take them for granted, it does. */
static inline int dr_has_aes(void) {
#if DR_ARM_AES
    return 1;
#elif defined(__linux__)
    return (int)((getauxval(AT_HWCAP) >> 3) & 1); /* HWCAP_AES */
#else
    return 0;
#endif
}

DR_TARGET_AES static inline dr_block dr_load(const void *p) { return vld1q_u8((const uint8_t *)p); }
DR_TARGET_AES static inline void dr_store(void *p, dr_block v) { vst1q_u8((uint8_t *)p, v); }
DR_TARGET_AES static inline dr_block dr_zero(void) { return vdupq_n_u8(0); }
DR_TARGET_AES static inline dr_block dr_xor(dr_block a, dr_block b) { return veorq_u8(a, b); }
DR_TARGET_AES static inline dr_block dr_and(dr_block a, dr_block b) { return vandq_u8(a, b); }
DR_TARGET_AES static inline dr_block dr_halves(uint64_t low, uint64_t high) {
    return vreinterpretq_u8_u64(vcombine_u64(vcreate_u64(low), vcreate_u64(high)));
}
DR_TARGET_AES static inline dr_block dr_add(dr_block a, dr_block b) {
    return vreinterpretq_u8_u64(vaddq_u64(vreinterpretq_u64_u8(a), vreinterpretq_u64_u8(b)));
}
DR_TARGET_AES static inline dr_block dr_subtract(dr_block a, dr_block b) {
    return vreinterpretq_u8_u64(vsubq_u64(vreinterpretq_u64_u8(a), vreinterpretq_u64_u8(b)));
}
DR_TARGET_AES static inline dr_block dr_up(dr_block v, int bits) {
    return vreinterpretq_u8_u64(vreinterpretq_u64_u8(v) << vdupq_n_u64((uint64_t)bits));
}
DR_TARGET_AES static inline dr_block dr_down(dr_block v, int bits) {
    return vreinterpretq_u8_u64(vreinterpretq_u64_u8(v) >> vdupq_n_u64((uint64_t)bits));
}
DR_TARGET_AES static inline dr_block dr_interleave_low(dr_block a, dr_block b) { return vzip1q_u8(a, b); }
DR_TARGET_AES static inline dr_block dr_interleave_high(dr_block a, dr_block b) { return vzip2q_u8(a, b); }
DR_TARGET_AES static inline dr_block dr_lowest(dr_block v) {
    const int8x16_t first = vreinterpretq_s8_u8(vdupq_laneq_u8(v, 0));
    return vreinterpretq_u8_s8(vshrq_n_s8(vshlq_n_s8(first, 7), 7));
}
DR_TARGET_AES static inline dr_block dr_sigma(dr_block x) {
    return veorq_u8(vextq_u8(x, x, 8), vandq_u8(x, dr_halves(0, UINT64_MAX)));
}
/* As above; but AESE adds its key first, so round r adds key r - 1. */
#define DR_KEY(r) ((r) - 1)
DR_TARGET_AES static inline dr_block dr_first(dr_block x, dr_block key0) {
    (void)key0;
    return x;
}
DR_TARGET_AES static inline dr_block dr_round(dr_block x, dr_block key) { return vaesmcq_u8(vaeseq_u8(x, key)); }
DR_TARGET_AES static inline dr_block dr_last(dr_block x, dr_block key9, dr_block key10) {
    return veorq_u8(vaeseq_u8(x, key9), key10);
}
#endif /* DR_ARM */

#if DR_BLOCKS
typedef struct {
    dr_block round[11];
} dr_aes_key;

#if DR_X86
/* FIPS-197 section 5.2, one round: w[i] = w[i-4] xor f(w[i-1]) for the four words of a round key at once. */
DR_TARGET_AES static inline dr_block dr_expand_step(dr_block key, dr_block assisted) {
    assisted = _mm_shuffle_epi32(assisted, 0xff);
    key = _mm_xor_si128(key, _mm_slli_si128(key, 4));
    key = _mm_xor_si128(key, _mm_slli_si128(key, 8));
    return _mm_xor_si128(key, assisted);
}
#define DR_STEP(i, rcon) out->round[i] = k = dr_expand_step(k, _mm_aeskeygenassist_si128(k, rcon))
#else
DR_TARGET_AES static inline dr_block dr_expand_step(dr_block key, uint32_t rcon) {
    const uint8x16_t zero = vdupq_n_u8(0);
    /* The last word in all four columns: then shifting rows changes nothing, and AESE substitutes its bytes. */
    const uint8x16_t word = vreinterpretq_u8_u32(vdupq_laneq_u32(vreinterpretq_u32_u8(key), 3));
    const uint32x4_t substituted = vreinterpretq_u32_u8(vaeseq_u8(word, zero));
    const uint32x4_t turned = vorrq_u32(vshrq_n_u32(substituted, 8), vshlq_n_u32(substituted, 24)); /* byte 1 first */
    key = veorq_u8(key, vextq_u8(zero, key, 12));
    key = veorq_u8(key, vextq_u8(zero, key, 8));
    return veorq_u8(key, vreinterpretq_u8_u32(veorq_u32(turned, vdupq_n_u32(rcon))));
}
#define DR_STEP(i, rcon) out->round[i] = k = dr_expand_step(k, rcon)
#endif

/* Expand a 16-byte key; `key` need not be aligned, `out` is. */
DR_TARGET_AES static inline void dr_aes_expand(const uint8_t key[16], dr_aes_key *out) {
    dr_block k = dr_load(key);
    out->round[0] = k;
    DR_STEP(1, 0x01);
    DR_STEP(2, 0x02);
    DR_STEP(3, 0x04);
    DR_STEP(4, 0x08);
    DR_STEP(5, 0x10);
    DR_STEP(6, 0x20);
    DR_STEP(7, 0x40);
    DR_STEP(8, 0x80);
    DR_STEP(9, 0x1b);
    DR_STEP(10, 0x36);
}
#undef DR_STEP

/* Encrypt one block. */
DR_TARGET_AES static inline dr_block dr_aes_encrypt1(const dr_aes_key *key, dr_block x) {
    x = dr_first(x, key->round[0]);
    for (int r = 1; r < 10; r++) {
        x = dr_round(x, key->round[DR_KEY(r)]);
    }
    return dr_last(x, key->round[9], key->round[10]);
}

/* Encrypt eight blocks in place under one key. Eight, because an AES round has a latency of 3 to 8 cycles and a throughput
 * of one or two per cycle: eight independent blocks keep the unit busy and still fit into sixteen registers. */
DR_TARGET_AES static inline void dr_aes_encrypt8(const dr_aes_key *key, dr_block x[8]) {
    dr_block k = key->round[0];
    dr_block x0 = dr_first(x[0], k), x1 = dr_first(x[1], k), x2 = dr_first(x[2], k), x3 = dr_first(x[3], k);
    dr_block x4 = dr_first(x[4], k), x5 = dr_first(x[5], k), x6 = dr_first(x[6], k), x7 = dr_first(x[7], k);
    for (int r = 1; r < 10; r++) {
        k = key->round[DR_KEY(r)];
        x0 = dr_round(x0, k);
        x1 = dr_round(x1, k);
        x2 = dr_round(x2, k);
        x3 = dr_round(x3, k);
        x4 = dr_round(x4, k);
        x5 = dr_round(x5, k);
        x6 = dr_round(x6, k);
        x7 = dr_round(x7, k);
    }
    k = key->round[9];
    const dr_block last = key->round[10];
    x[0] = dr_last(x0, k, last);
    x[1] = dr_last(x1, k, last);
    x[2] = dr_last(x2, k, last);
    x[3] = dr_last(x3, k, last);
    x[4] = dr_last(x4, k, last);
    x[5] = dr_last(x5, k, last);
    x[6] = dr_last(x6, k, last);
    x[7] = dr_last(x7, k, last);
}

/* Encrypt `blocks` blocks of 16 bytes from `in` to `out` (unaligned; in place allowed, partial overlap not). */
DR_TARGET_AES static inline void dr_aes_ecb(const dr_aes_key *key, const uint8_t *in, uint8_t *out, size_t blocks) {
    size_t i = 0;
    for (; i + 8 <= blocks; i += 8) {
        dr_block x[8];
        for (int j = 0; j < 8; j++) {
            x[j] = dr_load(in + 16 * (i + (size_t)j));
        }
        dr_aes_encrypt8(key, x);
        for (int j = 0; j < 8; j++) {
            dr_store(out + 16 * (i + (size_t)j), x[j]);
        }
    }
    for (; i < blocks; i++) {
        dr_block x = dr_load(in + 16 * i);
        dr_store(out + 16 * i, dr_aes_encrypt1(key, x));
    }
}

/* Write the key stream AES(key, counter), AES(key, counter + 1), ...: `blocks` blocks, the counter a 64-bit little-endian
 * number in bytes 0 to 7, bytes 8 to 15 zero. The caller sees to it that counter + blocks does not wrap. */
DR_TARGET_AES static inline void dr_aes_ctr(const dr_aes_key *key, uint64_t counter, uint8_t *out, size_t blocks) {
    size_t i = 0;
    for (; i + 8 <= blocks; i += 8) {
        dr_block x[8];
        for (int j = 0; j < 8; j++) {
            x[j] = dr_halves(counter + i + (uint64_t)j, 0);
        }
        dr_aes_encrypt8(key, x);
        for (int j = 0; j < 8; j++) {
            dr_store(out + 16 * (i + (size_t)j), x[j]);
        }
    }
    for (; i < blocks; i++) {
        dr_block x = dr_halves(counter + i, 0);
        dr_store(out + 16 * i, dr_aes_encrypt1(key, x));
    }
}
#endif /* DR_BLOCKS */

#endif /* DEEPREDUCE_AES128_H */
