#!/usr/bin/env python3
"""Cases for what few templates use (formatting, integers beyond 64 bits, groups, blocks ...), drawn at random and answered by
jinja2 itself in the sandbox that transformers uses: make_more_templates.py >templates/more.cases.json"""
import json
import random

from jinja2.sandbox import ImmutableSandboxedEnvironment

env = ImmutableSandboxedEnvironment(trim_blocks=True, lstrip_blocks=True, extensions=["jinja2.ext.loopcontrols"])
env.filters["tojson"] = lambda x: json.dumps(x, ensure_ascii=False)
R = random.Random(7)
ctx = {"n":42,"neg":-7,"f":2.5,"big":123456789012345678901234567890,"nb":-98765432109876543210,"s":"Hello World","u":"Grüße ß ǅ 你好","l":[3,1,2,5],"d":{"a":1,"b":"x"},"e":"","m":[{"r":"u","n":1},{"r":"T","n":2},{"r":"U","n":3},{"n":4,"r":"t"}],"t":True,"nil":None,"w":"a\tbb\tccc\nd\te"}
ints = ["n","neg","big","nb","0","1","-1","7","10**25","3**50","t","1000000000","999999999","10**18","2**63","-(2**63)"]


def expr():
    k = R.randrange(12)
    if k<4: return "{{ %s %s %s }}"%(R.choice(ints),R.choice(["+","-","*","//","%","/","<","==",">=","!="]),R.choice(ints))
    if k==4: return "{{ (%s) ** %d }}"%(R.choice(ints),R.randrange(6))
    if k==5:
        fl="".join(R.sample("-+ #0",R.randrange(3)))
        return "{{ '[%%%s%s%s%s]' %% (%s,) }}"%(fl,R.choice(["","5","12"]),R.choice(["",".2",".0"]) ,R.choice("dsrfegxXocEG"),R.choice(ints+["f","s","u","l","d","nil"]))
    if k==6:
        sp=R.choice(["","<","^",">","*^","é>","0=","="])+R.choice(["","+"," "])+R.choice(["","#"])+R.choice(["","0"])+R.choice(["","3","15"])+R.choice(["","","",",","_"])+R.choice(["","",".3"])+R.choice(["","d","f","e","g","%","x","b","s","X","o"])
        return "{{ '{:%s}|{}'.format(%s, 's') }}"%(sp,R.choice(ints+["f","s","u","nil","1e100","0.1"]))
    if k==7: return "{{ %s.%s }}"%(R.choice(["s","u","e","w","'12'","'ab_1'","'Abc Def'"]),R.choice(["swapcase()","casefold()","zfill(9)","ljust(14,'.')","rjust(14)","center(15,'*')","center(14)","isalnum()","isascii()","isdecimal()","isidentifier()","isprintable()","istitle()","expandtabs(4)","expandtabs()","encode()","isnumeric()" ]))
    if k==8: return "{{ %s | %s }}"%(R.choice(["s","u","w","'a b&c/d?e=f'","'<b>x</b> &amp; <!-- c --> y &lt;'","'the quick brown fox jumps over'"]),R.choice(["truncate(10)","truncate(9,true)","truncate(12,false,'..',0)","wordcount","center(30)","urlencode","striptags","forceescape","pprint","title","string","e"]))
    if k==9: return R.choice(["{{ l | batch(3) | list }}","{{ l | batch(3,0) | list }}","{{ l | slice(3) | list }}","{{ l | slice(3,'x') | list }}","{{ m | groupby('r') | list }}","{{ m | groupby('r',case_sensitive=true) | map(attribute='grouper') | list }}","{{ d | urlencode }}","{% for g in m|groupby('r') %}{{ g.grouper }}{{ g.list|length }}{{ g[0] }}{% endfor %}","{{ l|batch(2)|map('sum')|list }}"])
    if k==10: return R.choice(["{{ %s | filesizeformat }}","{{ %s | filesizeformat(true) }}","{{ %s | int }}","{{ %s | abs }}","{{ %s | string }}","{{ %s | tojson }}","{{ %s | float }}","{{ [%s] }}"])%R.choice(["n","big","f","1","999","1000","123456789","10**20","neg","nb"])
    return R.choice(["{% autoescape true %}{{ '<' }}{% set y = '<'|safe %}{{ y ~ '<' }}{{ '<' ~ 'a' }}{% set x %}<{{ '>' }}{% endset %}{{ x }}{% endautoescape %}","{% macro f(a,b=2) %}{{ a }}{{ b }}{{ kwargs }}{{ varargs }}{% endmacro %}{{ f(*[1,2,3],**{'c':4}) }}","{% macro f(a,b=2) %}{{ a }}{{ b }}{% endmacro %}{{ f(**d) }}","{% print s, n %}","{% set x=1 %}{% block q %}{{ x }}{% endblock q %}","{% for i in l %}{% block z scoped %}{{ i }}{% endblock %}{% endfor %}","{% set c=cycler(1,2) %}{{ c.next() }}{{ c.current }}{{ c.next() }}{{ c.next() }}{{ c.reset() }}{{ c.current }}","{% set j=joiner('|') %}{{ j() }}a{{ j() }}b{{ j() }}","{{ '%(a)s-%(b)r' % d }}","{{ '{a}{b!r:>5}'.format(**d) }}","{{ '{0[a]} {1.r}'.format(d, m[0]) }}","{{ '{0[0]}'.format(l) }}","{{ '%s' % l }}","{{ '%s %s' % (1,) }}","{{ 'a' % 1 }}","{{ '%d' % 'x' }}","{{ '%%' % () }}","{{ '{{}}'.format() }}","{{ 'x' | format(a=1) }}","{{ '%c%c' % (65,'b') }}","{{ d|attr('items') is callable }}","{{ (5).bit_length() }}{{ big == 123456789012345678901234567890.0 }}"])


FIXED = ["{% macro f() %}<b>{% endmacro %}{% autoescape true %}{{ f() }}{% endautoescape %}",
"{% macro f(x) %}<b>{{ x }}{% endmacro %}{% autoescape true %}{{ f('<') }}{% endautoescape %}",
"{% autoescape true %}{% macro f(x) %}<b>{{ x }}{% endmacro %}{{ f('<') }}{% endautoescape %}",
"{% autoescape true %}{% macro f(x) %}<b>{{ x }}{% endmacro %}{% set y = f('<') %}{% endautoescape %}{{ y }}",
"{% set q='<' %}{% autoescape true %}{% set x %}<{{ q }}{% endset %}{{ x }}{% endautoescape %}{{ x }}",
"{% set q='<' %}{% autoescape true %}{% filter upper %}a<{{ q }}{% endfilter %}{% endautoescape %}",
"{% set q='<' %}{% autoescape true %}{{ (q|safe) ~ q }}{{ q ~ q }}{{ q + (q|safe) }}{% endautoescape %}",
"{% macro f(x) %}<b>{{ caller() }}{% endmacro %}{% autoescape true %}{% call f(1) %}<{{ '<' }}{% endcall %}{% endautoescape %}",
"{% set q='<' %}{% autoescape false %}{{ q }}{% endautoescape %}{% autoescape true %}{% autoescape false %}{{ q }}{% endautoescape %}{{ q }}{% endautoescape %}"]

exprs = sorted({expr() for _ in range(900)}) + FIXED
cases = []
for template in exprs:
    case = {"id": "more-%03d" % len(cases), "template": template}
    try:
        case["expect"] = env.from_string(template).render(**ctx)
    except Exception as e:
        case.update(error=type(e).__name__, message=str(e), when="render")
    cases.append(case)
print('{\n"context": ' + json.dumps(ctx, ensure_ascii=False) + ',\n"cases": [')
print(",\n".join(json.dumps(c, ensure_ascii=False) for c in cases))
print("]\n}")
