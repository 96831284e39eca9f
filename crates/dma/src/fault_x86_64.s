# Routines that may touch memory which is not there (see fault.rs). System V ABI; leaf, nothing
# on the stack, so that the landing can return for any of them. Value in rax, failure in rdx: then
# the handler has put the address of the fault into rax.

    .pushsection .text.vfiod_dma, "ax", @progbits
    .hidden vfiod_dma_begin, vfiod_dma_end, vfiod_dma_landing
    .globl vfiod_dma_begin, vfiod_dma_end, vfiod_dma_landing
    .p2align 6
vfiod_dma_begin:

    .macro routine name
    .hidden \name
    .globl \name
    .type \name, @function
    .p2align 5
\name:
    .cfi_startproc
    .endm

    .macro done name
    xorl %edx, %edx
    ret
    .cfi_endproc
    .size \name, . - \name
    .endm

# copy(to: rdi, from: rsi, len: rdx)
# 1, 2, 4 and 8 bytes are one load and one store. Longer small ones are two that may overlap.
    routine vfiod_dma_copy
    cmpq $16, %rdx
    ja 20f
    cmpq $8, %rdx
    je 8f
    ja 16f
    cmpq $4, %rdx
    je 4f
    ja 7f
    cmpq $2, %rdx
    je 2f
    ja 3f
    testq %rdx, %rdx
    je 9f
    movzbl (%rsi), %eax
    movb %al, (%rdi)
9:  xorl %edx, %edx
    ret
2:  movzwl (%rsi), %eax
    movw %ax, (%rdi)
    xorl %edx, %edx
    ret
3:  movzwl (%rsi), %eax
    movzbl 2(%rsi), %ecx
    movw %ax, (%rdi)
    movb %cl, 2(%rdi)
    xorl %edx, %edx
    ret
4:  movl (%rsi), %eax
    movl %eax, (%rdi)
    xorl %edx, %edx
    ret
7:  movl (%rsi), %eax
    movl -4(%rsi,%rdx), %ecx
    movl %eax, (%rdi)
    movl %ecx, -4(%rdi,%rdx)
    xorl %edx, %edx
    ret
8:  movq (%rsi), %rax
    movq %rax, (%rdi)
    xorl %edx, %edx
    ret
16: movq (%rsi), %rax
    movq -8(%rsi,%rdx), %rcx
    movq %rax, (%rdi)
    movq %rcx, -8(%rdi,%rdx)
    xorl %edx, %edx
    ret
20: cmpq $32, %rdx
    ja 33f
    movups (%rsi), %xmm0
    movups -16(%rsi,%rdx), %xmm1
    movups %xmm0, (%rdi)
    movups %xmm1, -16(%rdi,%rdx)
    xorl %edx, %edx
    ret
33: cmpq $64, %rdx
    ja 65f
    movups (%rsi), %xmm0
    movups 16(%rsi), %xmm1
    movups -32(%rsi,%rdx), %xmm2
    movups -16(%rsi,%rdx), %xmm3
    movups %xmm0, (%rdi)
    movups %xmm1, 16(%rdi)
    movups %xmm2, -32(%rdi,%rdx)
    movups %xmm3, -16(%rdi,%rdx)
    xorl %edx, %edx
    ret
65: cmpq $512, %rdx
    jae 512f
    # 64 bytes a turn, then the last 64 once more from the end.
    leaq -64(%rsi,%rdx), %r8
    leaq -64(%rdi,%rdx), %r9
66: movups (%rsi), %xmm0
    movups 16(%rsi), %xmm1
    movups 32(%rsi), %xmm2
    movups 48(%rsi), %xmm3
    movups %xmm0, (%rdi)
    movups %xmm1, 16(%rdi)
    movups %xmm2, 32(%rdi)
    movups %xmm3, 48(%rdi)
    addq $64, %rsi
    addq $64, %rdi
    cmpq %r8, %rsi
    jb 66b
    movups (%r8), %xmm0
    movups 16(%r8), %xmm1
    movups 32(%r8), %xmm2
    movups 48(%r8), %xmm3
    movups %xmm0, (%r9)
    movups %xmm1, 16(%r9)
    movups %xmm2, 32(%r9)
    movups %xmm3, 48(%r9)
    xorl %edx, %edx
    ret
512:
    movq %rdx, %rcx
    rep movsb
    done vfiod_dma_copy

    .macro load size, op, to
    routine vfiod_dma_load\size
    \op (%rdi), \to
    done vfiod_dma_load\size
    .endm
    load 1, movzbl, %eax
    load 2, movzwl, %eax
    load 4, movl, %eax
    load 8, movq, %rax

    .macro store size, op, from, acc, with
    routine vfiod_dma_store\size
    \op \from, (%rdi)
    done vfiod_dma_store\size
    routine vfiod_dma_swap\size
    movq %rsi, %rax
    xchg \acc, (%rdi)
    done vfiod_dma_swap\size
    # cas(at: rdi, old: rsi, new: rdx)
    routine vfiod_dma_cas\size
    movq %rsi, %rax
    lock cmpxchg \with, (%rdi)
    done vfiod_dma_cas\size
    .endm
    store 1, movb, %sil, %al, %dl
    store 2, movw, %si, %ax, %dx
    store 4, movl, %esi, %eax, %edx
    store 8, movq, %rsi, %rax, %rdx

    .p2align 4
vfiod_dma_end:
vfiod_dma_landing:
    movl $1, %edx
    ret

    .purgem routine
    .purgem done
    .purgem load
    .purgem store
    .popsection
