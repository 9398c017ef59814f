//! What clients post, and what is refused.

use instruct_feedback::*;
use proptest::prelude::*;

/// Takes a body, and gives it back as the line of the log.
#[track_caller]
fn check(body: &str, want: &str) {
    let submission = Submission::parse(body.as_bytes()).unwrap();
    let line = submission.event("ann", 5).line();
    assert_eq!(line, want.to_owned() + "\n");
    let (events, torn) = read_log(line.as_bytes()).unwrap();
    assert_eq!((events.len(), torn), (1, None));
    assert_eq!(events[0].line(), line);
}

#[test]
fn every_kind_of_the_contract_becomes_a_line() {
    check(
        r#"{"key": "K", "kind": "ranking", "task": "t-0007", "shown": [2,0,1], "ranks": [1,2,1],
            "quality": [5,3,null], "flags": [["wrong-instruction"],[],[]], "confidence": 4, "note": "", "seconds": 41}"#,
        r#"{"v":1,"key":"K","at":5,"by":"ann","kind":"ranking","task":"t-0007","shown":[2,0,1],"ranks":[1,2,1],"quality":[5,3,null],"flags":[["wrong-instruction"],[],[]],"all_bad":false,"confidence":4,"note":"","seconds":41}"#,
    );
    // What may be absent is; null is absent.
    check(
        r#"{"kind":"ranking","key":"K","task":"t","seconds":0,"ranks":[3,3],"shown":[0,1],"all_bad":true,"confidence":null}"#,
        r#"{"v":1,"key":"K","at":5,"by":"ann","kind":"ranking","task":"t","shown":[0,1],"ranks":[3,3],"quality":[null,null],"flags":[[],[]],"all_bad":true,"confidence":null,"note":"","seconds":0}"#,
    );
    check(
        r#"{"key":"K","kind":"skip","task":"t-0007","reason":"not-my-language","note":"Finnish?","seconds":3}"#,
        r#"{"v":1,"key":"K","at":5,"by":"ann","kind":"skip","task":"t-0007","reason":"not-my-language","note":"Finnish?","seconds":3}"#,
    );
    check(
        r#"{"key":"K","kind":"demonstration","task":"t-0009","text":"Yes.","seconds":200}"#,
        r#"{"v":1,"key":"K","at":5,"by":"ann","kind":"demonstration","task":"t-0009","text":"Yes.","seconds":200}"#,
    );
    check(
        r#"{"key":"K","kind":"demonstration","messages":[{"role":"system","content":""},{"role":"user","content":"Hi"}],"text":"Yes.","seconds":200}"#,
        r#"{"v":1,"key":"K","at":5,"by":"ann","kind":"demonstration","messages":[{"role":"system","content":""},{"role":"user","content":"Hi"}],"text":"Yes.","seconds":200}"#,
    );
    check(
        r#"{"key":"K","kind":"thumb","answer":"a-12","up":true,"note":""}"#,
        r#"{"v":1,"key":"K","at":5,"by":"ann","kind":"thumb","answer":"a-12","up":true,"note":""}"#,
    );
    check(
        r#"{"key":"K","kind":"pair","answers":["a-12","a-13"],"choice":"bad","seconds":9}"#,
        r#"{"v":1,"key":"K","at":5,"by":"ann","kind":"pair","answers":["a-12","a-13"],"choice":"bad","seconds":9}"#,
    );
    check(
        r#"{"key":"K","kind":"edit","answer":"a-12","text":"two\nlines","seconds":80}"#,
        r#"{"v":1,"key":"K","at":5,"by":"ann","kind":"edit","answer":"a-12","text":"two\nlines","seconds":80}"#,
    );
}

#[test]
fn words_are_those_of_the_contract() {
    fn of<T: Copy>(all: &[T], word: fn(T) -> &'static str) -> Vec<&'static str> {
        all.iter().map(|one| word(*one)).collect()
    }
    let flags = "wrong-instruction inappropriate-assistant hallucination constraint sexual violent harmful-advice \
        denigrates gives-harmful-advice opinion moral-judgment";
    assert_eq!(of(Flag::ALL, Flag::as_str).join(" "), flags);
    assert_eq!(of(Reason::ALL, Reason::as_str).join(" "), "unclear unsafe not-my-language broken other");
    assert_eq!(of(Choice::ALL, Choice::as_str).join(" "), "left right tie bad");
}

#[track_caller]
fn check_refused(body: &str, want: &str) {
    let body = body.replace('\'', "\"");
    let fault = Submission::parse(body.as_bytes()).unwrap_err();
    assert_eq!(fault.to_string(), want, "{body}");
}

#[test]
fn what_is_wrong_is_named_by_field() {
    // A body that is none.
    check_refused("", "not JSON at byte 0: EOF while parsing a value");
    check_refused("{'key':'K'", "not JSON at byte 10: EOF while parsing an object");
    check_refused("[1]", "expected an object, found an array");
    check_refused("{'key':'a','key':'b'}", "key `key` occurs twice");
    check_refused("{'key':'K','kind':'thumb','answer':'a','up':true} {}", "not JSON at byte 51: trailing characters");
    // Keys and kinds.
    check_refused("{}", "`key`: missing");
    let ids = "must be 1 to 64 letters, digits, dots, underscores and hyphens";
    check_refused("{'key':''}", &format!("`key`: `` {ids}"));
    check_refused("{'key':'a b'}", &format!("`key`: `a b` {ids}"));
    check_refused("{'key':7}", "`key`: expected a string, found a whole number");
    check_refused(&format!("{{'key':'{}'}}", "k".repeat(65)), &format!("`key`: `{}...` {ids}", "k".repeat(40)));
    check_refused("{'key':'K'}", "`kind`: missing");
    let kinds = "`ranking`, `skip`, `demonstration`, `thumb`, `pair`, `edit`, `retract`";
    check_refused("{'key':'K','kind':'rank'}", &format!("`kind`: `rank` must be {kinds}"));
    let apart = "`kind`: `retract` must be what somebody says; a retraction has its own address";
    check_refused("{'key':'K','kind':'retract','retracts':'L'}", apart);
    // Fields that nobody asked for.
    check_refused("{'key':'K','kind':'thumb','answer':'a','up':true,'at':1}", "`at`: no such field");
    let message = "{'role':'user','content':'Hi','name':'Ann'}";
    check_refused(
        &format!("{{'key':'K','kind':'demonstration','messages':[{message}],'text':'a','seconds':1}}"),
        "`messages[0].name`: no such field",
    );
}

#[test]
fn a_ranking_fits_itself() {
    #[track_caller]
    fn check(fields: &str, want: &str) {
        check_refused(&format!("{{'key':'K','kind':'ranking','task':'t','seconds':1,{fields}}}"), want);
    }
    check("'ranks':[1]", "`shown`: missing");
    check("'shown':[0,1]", "`ranks`: missing");
    check("'shown':[0,1],'ranks':[1]", "`ranks`: 1 values, where 2 belong");
    check("'shown':[0,1],'ranks':[1,0]", "`ranks[1]`: 0 must be between 1 and 16");
    check("'shown':[0,1],'ranks':[1,17]", "`ranks[1]`: 17 must be between 1 and 16");
    check("'shown':[0,1],'ranks':[1,1.0]", "`ranks[1]`: expected a whole number, found a fraction");
    check("'shown':[0,1],'ranks':[1,-1]", "`ranks[1]`: expected a whole number, found a negative number");
    check("'shown':[0,1],'ranks':[1,null]", "`ranks[1]`: expected a whole number, found null");
    check("'shown':[0,0],'ranks':[1,2]", "`shown`: 0 stands there twice");
    check("'shown':[0,2],'ranks':[1,2]", "`shown[1]`: 2 must be below 2, the number of completions");
    check("'shown':[0,16],'ranks':[1,2]", "`shown[1]`: 16 must be between 0 and 15");
    check(&format!("'shown':{:?},'ranks':[1]", [0; 17]), "`shown`: 17 values, where at most 16 belong");
    check("'shown':[0,1],'ranks':[1,2],'quality':[1]", "`quality`: 1 values, where 2 belong");
    check("'shown':[0,1],'ranks':[1,2],'quality':[1,8]", "`quality[1]`: 8 must be between 1 and 7");
    check("'shown':[0,1],'ranks':[1,2],'flags':[[]]", "`flags`: 1 values, where 2 belong");
    check("'shown':[0,1],'ranks':[1,2],'flags':[[],['sexual','sexual']]", "`flags[1]`: sexual stands there twice");
    check("'shown':[0,1],'ranks':[1,2],'confidence':6", "`confidence`: 6 must be between 1 and 5");
    check("'shown':[0,1],'ranks':[1,2],'all_bad':true", "`all_bad`: all are bad, but the ranks differ");
    check("'shown':[0,1],'ranks':[1,2],'all_bad':1", "`all_bad`: expected true or false, found a whole number");
    let long = format!("'shown':[0],'ranks':[1],'note':'{}'", "n".repeat(MAX_NOTE + 1));
    check(&long, "`note`: 4097 bytes; at most 4096 are taken");
    check_refused(
        "{'key':'K','kind':'ranking','task':'t','shown':[0],'ranks':[1],'flags':[['rude']],'seconds':1}",
        "`flags[0][0]`: `rude` must be `wrong-instruction`, `inappropriate-assistant`, `hallucination`, `constraint`, \
         `sexual`, `violent`, `harmful-advice`, `denigrates`, `gives-harmful-advice`, `opinion`, `moral-judgment`",
    );
}

#[test]
fn the_other_kinds_say_what_is_wrong_too() {
    #[track_caller]
    fn check(kind: &str, fields: &str, want: &str) {
        check_refused(&format!("{{'key':'K','kind':'{kind}',{fields}}}"), want);
    }
    check("skip", "'task':'t','reason':'other'", "`seconds`: missing");
    let reasons = "`unclear`, `unsafe`, `not-my-language`, `broken`, `other`";
    check("skip", "'task':'t','reason':'tired','seconds':1", &format!("`reason`: `tired` must be {reasons}"));
    check("thumb", "'answer':'a','up':null", "`up`: missing");
    check("pair", "'answers':['a'],'choice':'tie','seconds':1", "`answers`: 1 values, where 2 belong");
    check("pair", "'answers':['a','b','c'],'choice':'tie','seconds':1", "`answers`: 3 values, where at most 2 belong");
    check("pair", "'answers':['a','a'],'choice':'tie','seconds':1", "`answers`: a stands there twice");
    check("edit", "'answer':'a','text':' \\n','seconds':1", "`text`: empty");
    check("edit", "'answer':'a','text':'a\\u0000b','seconds':1", "`text`: holds a NUL character");
    let long = format!("'answer':'a','text':'{}','seconds':1", "é".repeat(MAX_TEXT / 2 + 1));
    check("edit", &long, "`text`: 65538 bytes; at most 65536 are taken");
    check("demonstration", "'text':'a','seconds':1", "`task`: missing");
    let user = "{'role':'user','content':'Hi'}";
    let both = format!("'task':'t','messages':[{user}],'text':'a','seconds':1");
    check("demonstration", &both, "`messages`: stands beside `task`; one of them must go");
    check("demonstration", "'messages':[],'text':'a','seconds':1", "`messages`: empty");
    let last = "the last message must be one that the model may answer, such as the user's";
    for role in ["system", "assistant"] {
        let messages = format!("'messages':[{user},{{'role':'{role}','content':'Hi'}}],'text':'a','seconds':1");
        check("demonstration", &messages, &format!("`messages`: {last}"));
    }
    let blank = "'messages':[{'role':'user','content':' '}],'text':'a','seconds':1";
    check("demonstration", blank, "`messages[0].content`: empty");
    let voice = "'messages':[{'role':'critic','content':'Hi'}],'text':'a','seconds':1";
    let roles = "`system`, `user`, `assistant` or another voice that chat templates know";
    check("demonstration", voice, &format!("`messages[0].role`: `critic` must be {roles}"));
}

#[test]
fn a_retraction_has_its_own_body() {
    let read = |body: &str| Submission::parse_retraction(body.replace('\'', "\"").as_bytes());
    let line = read("{'key':'K2','retracts':'K1'}").unwrap().event("ann", 5).line();
    assert_eq!(line, "{\"v\":1,\"key\":\"K2\",\"at\":5,\"by\":\"ann\",\"kind\":\"retract\",\"retracts\":\"K1\"}\n");
    assert_eq!(read_log(line.as_bytes()).unwrap().0[0].line(), line);
    let refused = |body: &str| read(body).unwrap_err().to_string();
    assert_eq!(refused("{'key':'K','retracts':'K'}"), "`retracts`: K stands there twice");
    assert_eq!(refused("{'key':'K'}"), "`retracts`: missing");
    assert_eq!(refused("{'key':'K','retracts':'L','kind':'retract'}"), "`kind`: no such field");
}

#[test]
fn the_parameter_is_the_outermost_field() {
    let parameter = |body: &str| {
        let fault = Submission::parse(body.replace('\'', "\"").as_bytes()).unwrap_err();
        fault.parameter().map(str::to_owned)
    };
    assert_eq!(parameter("{'key':'K','kind':'ranking','task':'t','shown':[0],'ranks':[0]}").unwrap(), "ranks");
    let message = "{'key':'K','kind':'demonstration','messages':[{'role':'user'}]}";
    assert_eq!(parameter(message).unwrap(), "messages");
    assert_eq!(parameter("{"), None);
}

proptest! {
    #[test]
    fn bytes_never_panic(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
        let _ = Submission::parse(&bytes);
        let _ = Submission::parse_retraction(&bytes);
        let _ = (read_log(&bytes), read_tasks(&bytes), read_answers(&bytes));
    }

    #[test]
    fn a_body_with_one_byte_changed_is_refused_or_still_reads_back(at in 0usize..160, byte in any::<u8>()) {
        let sound = r#"{"key":"K","kind":"ranking","task":"t","shown":[1,0],"ranks":[2,1],"quality":[1,null],"flags":[["sexual"],[]],"all_bad":false,"confidence":5,"note":"a","seconds":12}"#;
        let mut bytes = sound.as_bytes().to_vec();
        let at = at % bytes.len();
        bytes[at] = byte;
        if let Ok(submission) = Submission::parse(&bytes) {
            let event = submission.event("ann", 1);
            prop_assert_eq!(read_log(event.line().as_bytes()).unwrap().0, vec![event]);
        }
    }

    #[test]
    fn any_text_is_one_line(text in any::<String>()) {
        // Every character as an escape, as no serialiser writes it.
        let escaped: String = text.encode_utf16().map(|unit| format!("\\u{unit:04x}")).collect();
        let written = format!(r#"{{"key":"K","kind":"demonstration","task":"t","text":"{escaped}","seconds":1}}"#);
        let noted = format!(r#"{{"key":"K","kind":"thumb","answer":"a","up":true,"note":"{escaped}"}}"#);
        let usable = !text.contains('\0') && !text.trim().is_empty();
        prop_assert_eq!(Submission::parse(written.as_bytes()).is_ok(), usable);
        let noted = Submission::parse(noted.as_bytes()).unwrap();
        for submission in Submission::parse(written.as_bytes()).into_iter().chain([noted]) {
            let event = submission.event("ann", 1);
            let line = event.line();
            prop_assert_eq!(line.matches('\n').count(), 1);
            prop_assert!(line.ends_with('\n') && !line.contains('\r'));
            prop_assert_eq!(read_log(line.as_bytes()).unwrap().0, vec![event]);
        }
    }
}
